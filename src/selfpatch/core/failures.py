"""Errors of a process that is one of a group, and the sentence that tells of an error; imports nothing heavy."""


class FailedElsewhere(Exception):
    """Another process of the group failed first, and says why."""


class FailedHere(ValueError):
    """This process of the group, which is not the main one, failed first; the others do not know why."""


class Stopped(Exception):
    """All processes of a group end together, as they were asked to."""


def sentence_of(error: ValueError | OSError) -> str:
    """Return what a user is told of an error in the input."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def is_unknown_home(error: Exception) -> bool:
    """Return whether an error is Python's that a path with `~` names a home folder that nobody has."""
    return isinstance(error, RuntimeError) and str(error) == "Could not determine home directory."
