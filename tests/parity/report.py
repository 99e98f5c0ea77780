"""Replay of several bundles, and the summary of what holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity.check import Check, all_hold
from tests.parity.kinds import MissingKind
from tests.parity.replay import find_bundles, kinds_of

REFUSALS = (ValueError, AssertionError, LookupError, RuntimeError)
"""Errors of a replay that count as a failure of its bundle, so that the others are still replayed."""


@dataclass
class Outcome:
    """Result of one bundle."""

    bundle: Path
    kind: str = "unknown"
    checks: list[Check] = field(default_factory=list)
    error: str = ""
    """One sentence that says why the bundle could not be replayed."""
    missing: str = ""
    """What the project needs before it has the bundle's method."""

    @property
    def holds(self) -> bool:
        return not self.error and not self.missing and all_hold(self.checks)

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "not implemented" if self.missing else "does NOT hold"

    @property
    def worst(self) -> Check | None:
        """The check that is closest to its tolerance, or furthest beyond it."""
        return max(self.checks, key=lambda check: check.strain, default=None)


def replay_all(paths: list[Path], show: Callable[[str], None]) -> list[Outcome]:
    """Replay every bundle at or below the paths and show each quantity."""
    outcomes = []
    for bundle in _unique(paths):
        outcome = Outcome(bundle)
        outcomes.append(outcome)
        show(f"{bundle}:")
        try:
            for kind in (kinds := kinds_of(bundle)):
                outcome.kind = ", ".join(kind.name for kind in kinds)
                if isinstance(kind, MissingKind):
                    outcome.missing = kind.needs
                    show(f"  not implemented in selfpatch; needs {kind.needs}")
                    continue
                for check in kind.replay(bundle):
                    outcome.checks.append(check)
                    show(f"  {check}")
        except REFUSALS as error:
            named = isinstance(error, ValueError)
            outcome.error = str(error) if named else f"the replay failed with {type(error).__name__}: {error}"
            show(f"  FAIL {outcome.error}")
    return outcomes


def _unique(paths: list[Path]) -> Iterator[Path]:
    yield from dict.fromkeys(bundle for path in paths for bundle in find_bundles(path))


def summary(outcomes: list[Outcome]) -> list[str]:
    """Return the lines of the closing table: bundle, kind, quantities, worst deviation and verdict."""
    rows = [("bundle", "kind", "quantities", "worst error / tolerance", "verdict")]
    for outcome in outcomes:
        worst = f"{outcome.worst.error:.1e} / {outcome.worst.tolerance:.0e}" if outcome.worst else "-"
        rows.append((str(outcome.bundle), outcome.kind, str(len(outcome.checks)), worst, outcome.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = [outcome for outcome in outcomes if not outcome.holds and not outcome.missing]
    for outcome in failed:
        reasons = [outcome.error] if outcome.error else [c.name for c in outcome.checks if not c.holds] or ["no check"]
        lines.append(f"FAIL {outcome.bundle}: {'; '.join(reasons[:5])}")
    missing = [outcome for outcome in outcomes if outcome.missing]
    if missing:
        lines.append("not implemented in selfpatch:")
        lines += [f"  {outcome.kind} ({outcome.bundle}): needs {outcome.missing}" for outcome in missing]
    holding = len(outcomes) - len(failed) - len(missing)
    lines.append(
        f"{holding} bundles hold, {len(failed)} do not, {len(missing)} of methods that selfpatch does not have"
    )
    lines.append("parity holds" if is_good(outcomes) else "parity does NOT hold")
    return lines


def is_good(outcomes: list[Outcome]) -> bool:
    """Return whether every bundle of an implemented method holds; nothing compared is nothing shown."""
    implemented = [outcome for outcome in outcomes if not outcome.missing]
    return bool(implemented) and all(outcome.holds for outcome in implemented)
