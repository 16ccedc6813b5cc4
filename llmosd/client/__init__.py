"""The two clients, blocking and asynchronous, and what they share. They import neither the kernel nor torch."""
