"""Settings for loading weights."""

from typing import Annotated, Literal

from annotated_types import Gt

from selfpatch.config.schema import settings

Side = Literal["teacher", "student"]


@settings
class LoadConfig:
    """Network of a checkpoint to read, and settings that the file does not record."""

    side: Side = "teacher"
    """Network of a checkpoint that holds both; the momentum encoder is the teacher."""
    num_heads: Annotated[int, Gt(0)] | None = None
    """Attention heads of a ViT; defaults to the saved value, the format's known value, or width / 64, at most 16 (more
    with a gated MLP only)."""
    position_embedding: Literal["released", "size"] | None = None
    """Interpolation of a ViT's position embeddings: as DINO's released code, or by size with antialiasing; if None, as
    trained."""
    allow_partial: bool = False
    """Accept weights that leave parts of the network as initialised."""


DEFAULTS = LoadConfig()
