"""The paper's experiments as a study that anyone can repeat: cells in, verdicts out.

grid.py          what is to be computed: every cell, by the few lists of a profile
cells.py         how one cell is computed: a pure function
sweep.py         all cells, on every core or many machines; stop it, and it goes on later
scores.py        what was found, in order for the tests
statistics.py    how sure one may be of a difference, paired by seed
propositions.py  a claim taken apart into what data can show
claims.py        the paper's claims, one function and one verdict each
figures.py       the pictures
report.py        all of it as one page
identify.py      which LeNet may it have been?
"""
