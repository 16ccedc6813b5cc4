"""Processes from their beginning to their end: spawn, exit, threads, control, limits, output.

Its system calls come by the gate. It sends no message and runs no model.
"""
