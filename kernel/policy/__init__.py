"""Scheduling policies: who holds the slots of a model. Each is pure and clockless, and knows of no driver."""
