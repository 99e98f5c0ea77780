"""Exception of a run that a signal stopped; importing it is cheap."""

from pathlib import Path

from selfpatch.core.failures import Stopped
from selfpatch.core.text import shell


class Interrupted(Stopped):
    """A signal stopped the run after a checkpoint."""

    def __init__(self, run: Path, signal_number: int) -> None:
        super().__init__(f"stopped and saved; resume with: {shell('selfpatch', 'resume', run)}")
        self.signal_number = signal_number
