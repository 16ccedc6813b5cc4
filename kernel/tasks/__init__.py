"""What clients submit: accepted once the journal has it, run, found again, and begun again after a restart.

Its system calls come by the gate, for clients alone.
"""
