"""Guided lessons: short scripts to read and to run, each one idea of the method."""
