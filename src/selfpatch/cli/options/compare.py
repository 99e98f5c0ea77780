"""Options of a comparison of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfpatch.evaluation.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Results of one evaluation side by side: the metrics, their differences to the first result, and bootstrap
    intervals where results hold the values of single images."""

    compare: tuple[str, ...]
    """Two or more result.json."""
    allow_different: bool = False
    """Compare what was measured on other data, with other settings, or by other evaluations."""

    def run(self) -> Comparison:
        from selfpatch.api.evaluate import compare

        return compare(self.compare, allow_different=self.allow_different)
