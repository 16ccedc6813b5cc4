"""Scheduling policies: they decide which sequences hold the slots of a model. They are pure and read no clock."""
