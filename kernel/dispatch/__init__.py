"""The ready queue, and its observers: deadlock detection, the watchdog, priority inheritance and instruments.

The rooms above use this room. It never starts or ends a process itself.
"""
