"""The tables and the waits of the kernel: processes, threads, mailboxes, streams, timers.

Used by every room above. Nothing here decides: it holds, orders and wakes.
"""
