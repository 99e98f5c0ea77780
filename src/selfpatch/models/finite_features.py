"""Check that features are finite where they are made, without waiting for the device after each batch.

Cosines, neighbours and clusters of features that are not finite are numbers like any others, so that an evaluation of
a broken network would give a score.
"""

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from selfpatch.core.deferred_flag import DeferredFlag


class NonFiniteFeatures(ValueError):
    """Features of a network are not finite."""


class FeatureCheck:
    """Judges each batch of features when the next one is there; on a CPU at once.

    Args:
        source: name of the network in errors.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = 0
        self._last: weakref.ref[Tensor] | None = None
        self._pending: tuple[DeferredFlag, str] | None = None

    def add(self, features: Tensor, images: Tensor) -> None:
        """Add the features of a batch of images; the same tensor counts once.

        Raises:
            NonFiniteFeatures: features of this batch, or of the one before, are not finite.
        """
        if (self._last is not None and self._last() is features) or not features.numel():
            return
        self.finish()
        self._count += 1
        self._last = weakref.ref(features)
        low, high = features.detach().aminmax()  # one pass, and NaN spreads to both
        self._pending = DeferredFlag(low.isfinite() & high.isfinite()), self._sentence(features, images)
        if self._at_once(features):
            self.finish()

    def finish(self) -> None:
        """Judge the batch that is left.

        Raises:
            NonFiniteFeatures: its features are not finite.
        """
        pending, self._pending = self._pending, None
        if pending is not None and not pending[0]:
            raise NonFiniteFeatures(pending[1])

    @staticmethod
    def _at_once(features: Tensor) -> bool:
        """Return whether reading a flag of these features waits for nothing."""
        return not features.is_cuda

    def _sentence(self, features: Tensor, images: Tensor) -> str:
        device = features.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else features.dtype
        advice = "use an earlier checkpoint, or other weights"
        if dtype in (torch.float16, torch.bfloat16):
            advice = f"they were computed in {str(dtype).removeprefix('torch.')}; use --precision float32"
        height, width = images.shape[-2:]
        batch = f"batch {self._count} ({len(images)} x {width} x {height} pixels)"
        return f"{self._source}: the features of {batch} are not finite; {advice}"


_active: FeatureCheck | None = None


@contextlib.contextmanager
def requiring_finite_features(source: str) -> Iterator[None]:
    """Raise NonFiniteFeatures inside if a network, which errors call `source`, makes features that are not finite."""
    global _active
    before, _active = _active, FeatureCheck(source)
    try:
        yield
        _active.finish()
    finally:
        _active = before


def checked_features(features: Tensor, images: Tensor) -> Tensor:
    """Return features of a batch of images; within `requiring_finite_features` they have to be finite."""
    if _active is not None and not features.is_meta:
        _active.add(features, images)
    return features
