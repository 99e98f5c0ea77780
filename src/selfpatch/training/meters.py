"""Meters of an encoder's tokens that need no method: rank, and artefacts."""

from torch import Tensor

from selfpatch.core.types import EncoderOutput
from selfpatch.ops.artefacts import outlier_share
from selfpatch.ops.collapse import effective_rank


def token_meters(output: EncoderOutput) -> dict[str, Tensor]:
    """Return the effective rank of patch and image tokens, and the share of patch tokens of outlying norm, scalars.

    Patches are those of the first resolution before the final norm, which would hide their norms.
    """
    tokens = (*output.tokens_per_resolution, output.pair_tokens)[0]
    assert tokens is not None
    patches = tokens.raw_patches
    meters = {"patch_rank": effective_rank(patches.flatten(0, 2)), "patch_outliers": outlier_share(patches)}
    return meters | ({"effective_rank": effective_rank(output.image.flatten(0, 1))} if len(output.image) else {})
