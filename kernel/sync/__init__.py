"""Synchronisation: lock, semaphore, condition, barrier and event, all built on one fair wait queue."""
