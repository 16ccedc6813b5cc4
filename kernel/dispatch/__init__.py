"""The ready queue, and its observers: deadlock detection, the watchdog, priority inheritance and instruments.

The rooms above use it. It never starts or ends a process itself.
"""
