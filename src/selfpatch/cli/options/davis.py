"""Options of the DAVIS evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions

if TYPE_CHECKING:
    from selfpatch.evaluation.result import Result

FIRST_MASK = "baseline:first-mask"


@dataclass(frozen=True, kw_only=True)
class Davis(EvaluationOptions):
    """DAVIS video object segmentation: the first mask of each clip propagated through patch features, J and F.
    `--weights baseline:first-mask` repeats the first mask."""

    evaluation: ClassVar[str] = "davis"

    data: str
    """DAVIS-2016 or -2017 tree, with JPEGImages/, Annotations/ and ImageSets/."""
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
    max_memory: int = 512
    """MB that the similarities of patches may take at once; speed and memory only."""
    year: Literal[2016, 2017] | None = None
    """None: 2017 where the tree has it."""
    sequences: tuple[str, ...] | None = None
    """Only these; None: those of the tree's val.txt."""

    def run(self) -> Result:
        if self.results is not None:
            from selfpatch.evaluation.video_segmentation.metrics import score

            return score(self.results, self.data, year=self.year, sequences=self.sequences)
        if self.weights == FIRST_MASK:
            from selfpatch.evaluation.video_segmentation.evaluate import repeat_first_mask

            return repeat_first_mask(self.data, self.out, year=self.year, sequences=self.sequences)
        return super().run()

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "results"}
