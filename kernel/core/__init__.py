"""The tables and the waits of the kernel: processes, threads, mailboxes, streams and timers.

Every room above uses it. It holds, orders and wakes; it never decides.
"""
