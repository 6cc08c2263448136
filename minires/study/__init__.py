"""The paper's experiments as a study that anyone can repeat: cells in, verdicts out.

experiment.py         one experiment, for `minires run`: train, fine-tune with moments, compare
experiment_figure.py  its picture
grid.py               what a sweep computes: every cell, by the few lists of a profile
cells.py              how one cell is computed: a pure function
sweep.py              all cells; a sweep can be stopped and goes on
crews.py              who computes them: processes, a cluster, a GPU
store.py              what is kept of each cell, how it is checked, and the table
scores.py             what was found, in order for the tests
statistics.py         how sure one may be of a difference, paired by seed
propositions.py       a claim taken apart into what data can show
claims.py             the paper's claims, one function and one verdict each
figures.py            the pictures
report.py             all of it as one page, by report.html.j2
which_lenet.py        which LeNet may the paper have used?
pretrained.py         the paper's second half: networks that others have trained
pretrained_findings.py, pretrained_report.py   what such a sweep found, and its page

An argument means the same in all of these files, unless a function says otherwise:

    sweep       a `store.Sweep`: what a sweep has found so far
    folder      of the sweep
    cell        a `grid.Cell`: one training run
    cells       a list of them
    setting     a `grid.Setting`: a cell without its seed
    profile     a `grid.Profile`: the lists that make the cells, and their common settings
    source      a `cells.Source`: where the images are
    dataset     uint8 images and their labels, as `minires.data.load` returns them
    record      what one cell found, as `store.RECORD` describes it
    records     a list of them
    method      whose networks are scored: a key of `figures.METHODS`, such as "mean"
    metric      "accuracy", "nll", "brier" or "ece"
    optimizer   of the pre-training: "sgd" or "adam"
"""
