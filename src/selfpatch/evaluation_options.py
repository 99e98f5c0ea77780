"""The command line's options of each evaluation; only what a call needs is imported, when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from selfpatch.evaluation.result import Result

FIRST_MASK = "baseline:first-mask"


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Which network, and how it is read."""

    weights: str | None = None
    """A run directory, a released checkpoint, a .safetensors file, or timm:NAME. To compare with: untrained:RUN,
    baseline:mean-colour:P and baseline:raw-patch:P, P being the side of a patch."""
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
class Davis(NetworkOptions):
    """DAVIS video object segmentation: the first mask of each clip propagated through patch features, J and F.
    `--weights baseline:first-mask` repeats the first mask."""

    data: str
    """DAVIS-2016 or -2017 tree, with JPEGImages/, Annotations/ and ImageSets/."""
    out: str | None = None
    """Folder for masks, pictures and result.json."""
    results: str | None = None
    """Score this folder of ready-made masks instead of a network."""
    resolution: int = 480
    """Short side of the frames in pixels."""
    radius: int = 12
    """Of the window, in patches."""
    topk: int = 5
    """Context patches a patch takes its label from."""
    context_frames: int = 7
    """Frames just before the present one that are looked at beside the first."""
    temperature: float = 0.1
    std: Literal["released", "encoder"] = "released"
    """Normalise with the released script's standard deviation, or with the network's own."""
    year: Literal[2016, 2017] | None = None
    """None: 2017 where the tree has it."""
    sequences: tuple[str, ...] | None = None
    """Only these; None: those of the tree's val.txt."""

    def run(self) -> Result:
        if self.results is not None:
            from selfpatch.evaluation.davis import score

            return score(self.results, self.data, year=self.year, sequences=self.sequences)
        if self.weights == FIRST_MASK:
            from selfpatch.evaluation.davis import repeat_first_mask

            return repeat_first_mask(self.data, self.out, year=self.year, sequences=self.sequences)
        protocol = ("resolution", "radius", "topk", "context_frames", "temperature", "std", "year", "sequences", "out")
        return _evaluate("davis", self, **{name: getattr(self, name) for name in protocol})


@dataclass(frozen=True, kw_only=True)
class Knn(NetworkOptions):
    """Weighted k-nearest-neighbour classification of image features; k = 20 is the number to quote."""

    data: str
    """Folder with train/ and val/ (or test/), each with a sub-folder a class."""
    out: str | None = None
    """Folder for result.json."""
    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    resize: int = 256
    """Short side that images are resized to, in pixels."""
    crop: int = 224
    """Side of the centre crop, in pixels."""
    batch_size: int = 64

    def run(self) -> Result:
        protocol = ("ks", "temperature", "resize", "crop", "batch_size", "out")
        return _evaluate("knn", self, **{name: getattr(self, name) for name in protocol})


EVALUATIONS: dict[str, type[Davis] | type[Knn]] = {"davis": Davis, "knn": Knn}


def _evaluate(name: str, network: Davis | Knn, **settings: Any) -> Result:
    weights, options = network.named_weights(), network.load_options()
    from rich.progress import Progress

    from selfpatch.commands import evaluate

    with Progress(transient=True) as bar:
        task = bar.add_task(name, total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return evaluate(
            name,
            weights,
            network.data,
            device=network.device,
            load_options=options,
            progress=progress,
            **settings,
        )
