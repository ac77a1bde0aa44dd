"""What experiments are made of: command line, methods, grids, the run itself, tables. See `experiment.py` first.

Nothing here imports JAX before the flags are read, so that `--help` and a mistyped flag answer at once.
"""
