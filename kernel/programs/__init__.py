"""Agents and tools as functions: how they are found, and which arguments they take.

Used by every part of the kernel that starts one. It never runs an agent or a tool.
"""
