"""Downpour SGD of section 4.1: the replica's loop, and the ledger that hands out the data."""
