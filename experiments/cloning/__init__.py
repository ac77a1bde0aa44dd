"""E1: can training leave the manifold of cloned units? `python -m experiments.cloning --help`."""
