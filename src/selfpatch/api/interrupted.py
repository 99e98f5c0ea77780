"""Exception of work that a signal stopped; importing it is cheap."""

from selfpatch.core.failures import Stopped


class Interrupted(Stopped):
    """A signal stopped a training after a checkpoint, or a suite of evaluations; the message says how it goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
