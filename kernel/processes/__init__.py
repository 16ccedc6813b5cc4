"""Processes from start to end: spawn, exit, threads, control, limits, output.

The gate calls its handlers. This room never sends a message or runs a model.
"""
