"""Options of the object discovery evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Discover(EvaluationOptions):
    """Unsupervised object discovery: one box an image from patch features, by LOST and TokenCut, and CorLoc, the share
    of images whose box has an IoU of at least 0.5 with any object's."""

    evaluation: ClassVar[str] = "discover"

    data: str
    """VOC (Annotations/, ImageSets/, JPEGImages/, perhaps in VOCdevkit/VOC2007/) or COCO (annotations/, train2014/)."""
    methods: tuple[str, ...] = ("lost", "tokencut")
    """Any of lost, tokencut and attention; the last needs a class token."""
    facet: Literal["key", "query", "value", "token"] | None = None
    """What LOST and TokenCut look at; None: keys of a ViT, patch tokens of anything else."""
    block: int | None = None
    """Whose keys, queries, values or attention, counted from 1; None: the last."""
    num_patches: int = 100
    """Patches of lowest degree from which LOST expands its seed."""
    tau: float = 0.2
    """Cosine above which patches are alike to TokenCut."""
    mass: float = 0.6
    """Share of the attention that attention boxes keep."""
    head: int | None = None
    """Of the attention, counted from 0; None: the mean of all. LOST's comparison with DINO takes 4."""
    split: str | None = None
    """None: trainval of VOC; the only one of COCO, or train2014."""
    image_list: str | None = None
    """Text file with the names of the images to take, one a line: COCO-20k is such a list of train2014."""
    hard: bool = True
    """Keep VOC's boxes that are marked difficult or truncated, as LOST does by default."""
    max_pictures: int = 8
    """Images whose boxes are drawn."""
