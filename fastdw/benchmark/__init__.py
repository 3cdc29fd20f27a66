"""Timing against other runtimes, and the check of every kernel against the float64 reference."""
