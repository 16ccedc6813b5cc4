"""Agents and tools as functions: how they are found, what they take, how often they were read.

Used by every part that starts one. Nothing here runs them.
"""
