"""Explanations: why a process does not go on, as facts and as one paragraph."""
