"""Errors of a process that is one of a group, and the sentence that tells of an error; imports nothing heavy."""


class FailedElsewhere(Exception):
    """Another process of the group failed first, and says why."""


class FailedHere(ValueError):
    """This process of the group, which is not the main one, failed first; the others do not know why."""


class Stopped(Exception):
    """All processes of a group end together, as they were asked to."""


MAX_SENTENCE = 1500
"""Largest length of what a user is told; a file may hold values of any length, which errors quote."""

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
"""Parts of torch's messages of the CPU on Linux, of the CPU on Windows, and of CUDA and MPS."""


def sentence_of(error: ValueError | OSError) -> str:
    """Return what a user is told of an error in the input, without the middle of one that is too long."""
    sentence = str(error)
    if isinstance(error, OSError):
        sentence = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    if len(sentence) > MAX_SENTENCE:
        return f"{sentence[: MAX_SENTENCE // 2]} [...] {sentence[-MAX_SENTENCE // 3 :]}"
    return sentence


def is_unknown_home(error: Exception) -> bool:
    """Return whether an error is Python's that a path with `~` names a home folder that nobody has."""
    return isinstance(error, RuntimeError) and str(error) == "Could not determine home directory."


def is_lost_process(error: Exception) -> bool:
    """Return whether an error is torch's that another process of the group has ended without a word, as if killed."""
    return isinstance(error, RuntimeError) and any(
        part in str(error) for part in ("Connection reset by peer", "Connection closed by peer")
    )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is Python's or torch's that memory could not be allocated, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
