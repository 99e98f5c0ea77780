"""Options of the k-NN evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Knn(EvaluationOptions):
    """Weighted k-nearest-neighbour classification of image features; k = 20 is the number to quote."""

    evaluation: ClassVar[str] = "knn"

    data: str
    """Folder with train/ and val/ (or test/), each with a sub-folder a class."""
    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    resize: int = 256
    """Short side that images are resized to, in pixels."""
    crop: int = 224
    """Side of the centre crop, in pixels."""
    encode_batch: int = 64
    """Images that are encoded at once; speed and memory only."""
