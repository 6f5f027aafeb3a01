"""Benchmarks: ratios to what a user would pick instead, or to a limit of the machine. Never tests."""
