"""What experiments are made of: command line, methods, grids, the run itself, tables. Start with `experiment.py`.

Nothing here imports JAX before the flags are read, so that `--help` and mistyped flags are answered at once.
"""
