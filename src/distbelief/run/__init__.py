"""A run: what was asked for, its directory and checkpoints, when it ends, and what can be done with it afterwards."""
