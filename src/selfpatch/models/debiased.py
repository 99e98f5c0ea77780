"""Patch features without what tells where a patch is, for any encoder (INSID3, arXiv 2603.28480)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.models.finite_features import NonFiniteFeatures, checked_features
from selfpatch.ops.debias import position_basis, remove_positions
from selfpatch.ops.images import normalise


class Debiasing:
    """A function that makes patch features, without the `rank` directions in which those of a black image differ.

    The directions are found once for each size of images, by encoding a black one of that size. `ops.debias` has the
    formulas; the features have length 1.

    Args:
        function: function of normalised images [B, C, H, W] that returns patch features [B, D, h, w].
        rank: number of directions.
        mean: mean that images in [0, 1] are normalised with.
        std: standard deviation that they are normalised with.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], rank: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self._function, self._rank, self._mean, self._std = function, rank, mean, std
        self._bases: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, float32 [B, D, h, w].

        Raises:
            ValueError: features of this size have fewer directions than `rank`, or are not finite.
        """
        features, basis = self._function(images), self.basis(images)
        with torch.autocast(images.device.type, enabled=False):
            debiased = remove_positions(features.float().movedim(1, -1), basis).movedim(-1, 1)
        return checked_features(debiased, images)

    def basis(self, images: Tensor) -> Tensor:
        """Return the directions [D, rank] at the size of images [B, C, H, W]."""
        size = images.shape[-2:]
        if size not in self._bases:
            self._bases[size] = self._found(images)
        return self._bases[size].to(images.device)  # the encoder may have been moved since

    def _found(self, images: Tensor) -> Tensor:
        black = normalise(torch.zeros_like(images[:1]), self._mean, self._std)
        features = self._function(black).float()[0].movedim(0, -1)  # [h, w, D]
        h, w, dim = features.shape
        most, (height, width) = min(h * w, dim) - 1, images.shape[-2:]
        if self._rank > most:
            raise ValueError(
                f"debias is {self._rank}, but {h} x {w} patches of width {dim} (images of {width} x {height} pixels) "
                f"have {counted(most, 'direction')}; use fewer, or larger images"
            )
        if not in_dry_run() and not features.isfinite().all():
            raise NonFiniteFeatures(
                f"the features of a black image of {width} x {height} pixels are not finite, so that debias finds no "
                "positions; use an earlier checkpoint, or other weights"
            )
        with torch.autocast(images.device.type, enabled=False):
            return position_basis(features, self._rank)


class DebiasedEncoder:
    """Another encoder whose patch features are debiased; its image features stay as they are."""

    def __init__(self, encoder: Encoder, rank: int) -> None:
        self.encoder, self.dim, self.patch_size = encoder, encoder.dim, encoder.patch_size
        self.mean, self.std, self.rank = encoder.mean, encoder.std, rank
        self.patches = Debiasing(encoder.patches, rank, encoder.mean, encoder.std)

    @property
    def device(self) -> torch.device:
        """Device that images must be on."""
        return self.encoder.device

    def image(self, images: Tensor) -> Tensor:
        """Return the other encoder's image features [B, D] of normalised images [B, C, H, W]."""
        return self.encoder.image(images)


def debiased(encoder: Encoder, rank: int) -> Encoder:
    """Return the encoder without `rank` directions of its positions, or itself if that is 0."""
    return DebiasedEncoder(encoder, rank) if rank else encoder
