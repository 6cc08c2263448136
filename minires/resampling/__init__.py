"""The method: running moments of the weights, ensembles sampled from them, and other methods."""
