"""Automatic differentiation: the tape, and the operations on it."""
