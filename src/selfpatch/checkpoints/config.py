"""Settings for loading weights."""

from typing import Annotated, Literal

from annotated_types import Gt

from selfpatch.config.schema import settings

Side = Literal["teacher", "student"]


@settings
class LoadConfig:
    """Network of a checkpoint to read, and settings of it that the file does not tell."""

    side: Side = "teacher"
    """Network of a checkpoint that holds both; the momentum encoder is the teacher."""
    num_heads: Annotated[int, Gt(0)] | None = None
    """Attention heads of a ViT, which a state dict does not tell; if None, as saved, as known of the format, or
    width / 64."""
    position_embedding: Literal["released", "size"] | None = None
    """Interpolation of a ViT's position embeddings: as the released code of DINO does, or by the size, with antialias;
    if None, as the weights were trained."""
    allow_partial: bool = False
    """Accept weights that leave parts of the network as initialised."""


DEFAULTS = LoadConfig()
