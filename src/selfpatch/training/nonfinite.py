"""Detection of steps whose loss or gradient is not finite, without waiting for the device."""

from selfpatch.core.deferred_flag import DeferredFlag


class NonFiniteCounter:
    """Counts steps in a row that were not finite.

    The flag of a step is read when the next step has been started, so that the device always has work. If one more such
    step reaches the limit, the flag is read at once, before the state changes.

    Args:
        limit: number of steps in a row at which training stops; 1 waits for every step.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._pending: DeferredFlag | None = None

    def reaches_limit(self, finite: DeferredFlag) -> bool:
        """Add a step that has just been started, and return whether the limit is reached."""
        self._read_pending()
        self._pending = finite
        if self._in_a_row + 1 >= self._limit:
            self._read_pending()
        return self._in_a_row >= self._limit

    def _read_pending(self) -> None:
        if self._pending is not None:
            self._in_a_row = 0 if self._pending else self._in_a_row + 1
        self._pending = None
