"""The simulated driver: a device with a stated cost model and no language model. Its words are made up from numbers.

Started by the kernel as a process, or run by tests on their own loop and clock. It serves tests and capacity planning,
and never pretends to understand a prompt: what it cannot do it refuses by name.
"""
