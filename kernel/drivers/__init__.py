"""Drivers: programs that run one model each, in a process of their own, and talk to the kernel by messages only."""
