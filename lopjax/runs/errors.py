"""What a folder of runs can be refused for."""


class RunFolderError(ValueError):
    """A run folder that cannot be used: of another config, incomplete, in use, damaged, or not to be written."""
