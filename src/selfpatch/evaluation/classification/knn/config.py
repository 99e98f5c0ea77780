"""Settings of k-NN classification."""

from typing import Annotated

from annotated_types import MinLen
from pydantic import PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.classification.config import ClassificationConfig
from selfpatch.evaluation.config import FrozenConfig


@settings
class KNNConfig(FrozenConfig, ClassificationConfig):
    """Weighted k-nearest-neighbour classification of image features; k = 20 is the value that DINO reports."""

    ks: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (10, 20, 100, 200)
    """Numbers of neighbours that vote; those above the number of training images are left out, and all images vote if
    each is."""
    temperature: PositiveFloat = 0.07
    """Softmax temperature of the votes."""
    encode_batch: Annotated[PositiveInt, SPEED_ONLY] = 64
    """Centre crops encoded at once; changes speed and memory only."""
