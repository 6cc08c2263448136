"""The paper's experiments as a study that anyone can repeat: cells in, verdicts out.

grid.py     what is to be computed: every cell, by the few lists of a profile
cells.py    how one cell is computed: a pure function
sweep.py    all cells, on every core or on many machines, stopped and gone on with at will
"""
