"""One file an experiment: `python -m experiments.<name>`, each with a `quick` and a `paper` preset."""
