"""Settings of positive matching."""

from typing import Literal

from pydantic import PositiveInt

from selfpatch.config.schema import settings
from selfpatch.core.text import counted

Window = int | Literal["all"]
Border = Literal["wrap", "clip"]


@settings
class MatchingConfig:
    """Rule that chooses the positives of a patch (SelfPatch, arXiv 2206.07990, section 3.2)."""

    k: PositiveInt = 4
    """Number of positives per patch."""
    window: Window = 3
    """Side of the square neighbourhood in patches, an odd number from 3 on, or `all` for every other patch."""
    border: Border = "wrap"
    """Neighbourhood at the image border: `wrap` to the opposite side (released code), or `clip` to the image."""

    def __post_init__(self) -> None:
        check_matching(self.k, self.window, self.border)


def check_matching(k: int, window: Window, border: Border) -> None:
    """Raise ValueError if k, window and border do not go together on any grid."""
    if window != "all" and (not isinstance(window, int) or window < 3 or window % 2 == 0):
        raise ValueError(f"window is {window!r}; use an odd number from 3 on, or 'all'")
    if border not in ("wrap", "clip"):
        raise ValueError(f"border is {border!r}; use 'wrap' (as released) or 'clip'")
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 positive is needed")
    if window != "all" and k > (neighbours := window * window - 1):
        raise ValueError(
            f"k is {k}, but a {window}x{window} window has {counted(neighbours, 'neighbour')}; lower k or widen the "
            "window"
        )
