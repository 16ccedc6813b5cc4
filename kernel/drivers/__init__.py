"""Drivers: programs that drive a model runtime, each in a process of its own, spoken to by messages only."""
