"""Options that say which network is meant, and how an evaluation is run on it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from selfpatch.cli.network import NetworkOptions
from selfpatch.config.schema import plain

if TYPE_CHECKING:
    from selfpatch.evaluation.result import Result


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(NetworkOptions):
    """What every evaluation is given: a network, data, and perhaps a folder to write to. The other fields are the
    keyword arguments of its `evaluate`."""

    evaluation: ClassVar[str]
    """Its name in `build.EVALUATIONS`."""

    data: str
    out: str | None = None
    """Folder for result.json and what else is written."""

    def settings(self) -> dict[str, Any]:
        """What `evaluate` is given beside network and data."""
        others = {"data", *(field.name for field in fields(NetworkOptions))}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}

    def run(self) -> Result:
        """Runs the evaluation with a bar of its progress; heavy modules are imported here and not before."""
        weights = self.named_weights()
        from rich.progress import Progress

        from selfpatch.api.evaluate import evaluate

        with Progress(transient=True) as bar:
            task = bar.add_task(self.evaluation, total=None)

            def progress(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            return evaluate(
                self.evaluation,
                weights,
                self.data,
                device=self.device,
                load_options=plain(self.load),
                progress=progress,
                **self.settings(),
            )
