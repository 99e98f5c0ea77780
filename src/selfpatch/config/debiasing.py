"""Setting of position debiasing."""

from pydantic import NonNegativeInt

from selfpatch.config.schema import settings


@settings
class DebiasingConfig:
    """Removal of positions from patch features (INSID3, arXiv 2603.28480)."""

    debias: NonNegativeInt = 0
    """Number of directions to remove from patch features: those in which the patches of a black image of the same size
    differ, which tell the position (INSID3, arXiv 2603.28480); 0 removes none, and 20 was published for a ViT-B."""
