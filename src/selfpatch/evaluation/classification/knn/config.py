"""Settings of k-NN classification."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Gt, MinLen

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.config import EvaluationConfig


@settings
class KNNConfig(EvaluationConfig):
    """Weighted k-nearest-neighbour classification of image features; k = 20 is the number to quote."""

    data_help: ClassVar[str] = "Folder with train/ and val/ (or test/), each with one sub-folder per class."

    ks: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)] = (10, 20, 100, 200)
    """Numbers of neighbours that vote; those above the number of training images are left out."""
    temperature: Annotated[float, Gt(0)] = 0.07
    """Softmax temperature of the votes."""
    resize: Annotated[int, Gt(0)] = 256
    """Short side that images are resized to (bicubic), in pixels."""
    crop: Annotated[int, Gt(0)] = 224
    """Side of the centre crop, in pixels."""
    encode_batch: Annotated[int, Gt(0), SPEED_ONLY] = 64
    """Images encoded at once; changes speed and memory only."""
