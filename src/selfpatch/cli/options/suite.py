"""Options of a suite of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfpatch.cli.options.weights import NetworkOptions

if TYPE_CHECKING:
    from selfpatch.experiments.suite import Outcome


@dataclass(frozen=True, kw_only=True)
class Suite(NetworkOptions):
    """Every evaluation that a file lists, and one report of all. A suite that was stopped goes on when it is called
    again; an evaluation that fails does not keep the others from running."""

    suite: str
    """YAML file with an evaluation a line: `- davis: {data: DAVIS, resolution: 240}`. Settings are those that
    `selfpatch evaluate NAME --help` lists, with underscores."""
    out: str | None = None
    """Folder for a folder of each evaluation, report.html and report.md; None: evaluations/SUITE-WEIGHTS."""

    def run(self) -> list[Outcome]:
        """Runs what is yet to be run, each table printed when it is known."""
        weights = self.named_weights()
        from rich.progress import Progress

        from selfpatch.experiments.suite import evaluate_suite

        with Progress(transient=True) as bar:
            task = bar.add_task("suite", total=None)

            def progress(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            def tell(outcome: Outcome) -> None:
                name = f"{outcome.entry.number}. {outcome.entry.evaluation} on {outcome.entry.data}"
                state = "failed" if outcome.error else "was done before" if outcome.was_done else "done"
                bar.console.print(f"{name}: {state}", highlight=False, markup=False, soft_wrap=True)
                if outcome.result is not None:
                    bar.console.print(outcome.result.table())

            return evaluate_suite(
                self.suite,
                weights,
                self.out,
                device=self.device,
                load_options=self.load_options(),
                tell=tell,
                progress=progress,
            )
