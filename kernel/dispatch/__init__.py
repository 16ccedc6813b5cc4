"""What runs next, and what looks at that: the ready queue, deadlocks, the watchdog, instruments.

Used by the rooms above. Nothing here starts or ends a process.
"""
