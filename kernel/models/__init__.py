"""Model slots: which sequences run on which model runtime, by leases counted in tokens."""
