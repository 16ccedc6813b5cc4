"""Drivers: programs that run one model each, in a process of their own. Driver and kernel share only messages."""
