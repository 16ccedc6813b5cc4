"""Shared by all rooms: validation, failpoints, lock files, machine, timer, units. It knows nothing of the kernel."""
