"""The simulated driver: a device with a configured cost model and no language model. It makes up words from numbers.

The kernel starts it as a process; tests run it on their own loop and clock. It is for tests and capacity planning. It
never pretends to understand a prompt: it refuses unsupported requests with an error that names them.
"""
