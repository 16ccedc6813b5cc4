"""Synchronisation: a fair wait queue, and the lock, semaphore, condition, barrier and event that stand on it."""
