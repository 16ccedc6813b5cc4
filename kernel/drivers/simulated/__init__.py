"""The simulated driver: a device with a configured cost model and no language model. Its tokens are numbered words.

It is for tests and capacity planning. The kernel starts it as a process; tests and `llmosd/simulator` run the device on
their own loop and clock. It never pretends to understand a prompt, and refuses a constraint that it does not support.
"""
