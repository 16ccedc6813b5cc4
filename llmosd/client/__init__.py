"""The blocking and the asynchronous client, and their common parts. They import neither the kernel nor torch."""
