"""The building blocks of experiments: command line, methods, grids, the run itself, tables. Start with `experiment.py`.

Nothing here imports JAX before the flags are read, so that `--help` and mistyped flags get an immediate answer.
"""
