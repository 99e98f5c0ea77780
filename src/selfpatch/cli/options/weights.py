"""Options that say which network is meant, and how an evaluation is run on it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from selfpatch.evaluation.result import Result


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Which network, and how it is read."""

    weights: str | None = None
    """A run directory, a released checkpoint, a .safetensors file, or timm:NAME; what measures or draws also takes
    untrained:RUN, baseline:mean-colour:P and baseline:raw-patch:P, P being the side of a patch, to compare with."""
    side: Literal["teacher", "student"] = "teacher"
    num_heads: int | None = None
    """Attention heads, which a checkpoint does not tell; None: width / 64."""
    position_embedding: Literal["released", "size"] | None = None
    """How position embeddings are interpolated; None: as the weights were trained."""
    allow_partial: bool = False
    """Use weights that leave parts of the network as initialised."""

    def named_weights(self) -> str:
        if self.weights is None:
            raise ValueError("no weights were named; give --weights with a run directory, a checkpoint or timm:NAME")
        return self.weights

    def load_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("side", "num_heads", "position_embedding", "allow_partial")}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(WeightsOptions):
    """Which network, how it is read, and where it runs."""

    device: str = "auto"


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
                load_options=self.load_options(),
                progress=progress,
                **self.settings(),
            )
