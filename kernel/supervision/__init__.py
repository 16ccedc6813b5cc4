"""Supervision: links, monitors, supervisors and crash reports.

The gate calls its handlers, and the kernel reports every end of a process to it. This room never prevents an end.
"""
