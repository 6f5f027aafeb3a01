"""The simulated engine: everything in one process, in virtual time, from a seed."""
