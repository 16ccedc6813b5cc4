"""The tables and the waits of the kernel: processes, threads, mailboxes, streams and timers.

Every room above uses this room. It holds data, keeps queues in order and wakes threads; it never decides.
"""
