"""Agents and tools as functions: how they are found, and which arguments they take.

Used by the parts of the kernel that start agents or call tools. This room never runs an agent or a tool.
"""
