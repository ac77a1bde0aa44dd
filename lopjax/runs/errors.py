"""The error for run folders that cannot be used."""


class RunFolderError(ValueError):
    """A run folder that cannot be used: it has another config, or is incomplete, in use, damaged or not writable."""
