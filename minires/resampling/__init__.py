"""The method: running moments of the weights, drawn ensembles, and the methods beside it."""
