"""Engines bring the algorithms to life: on one machine, on a cluster, in virtual time."""
