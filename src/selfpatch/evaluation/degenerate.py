"""Degenerate inputs that an evaluation meets, such as constant features, which make its numbers meaningless.

::

    with collecting_degenerate() as collector:           once, around every evaluation
        check_patches(features, image_name)              in a protocol, for each image
        check_degenerate("the graph is complete; ...", is_complete, image_name)
    collector.gathered()                                 what was degenerate, of all processes

Outside of `collecting_degenerate` the checks do nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import gather

NUM_ITEMS = 20
"""Number of items that a result names for each kind of degenerate input."""
NUM_SHOWN = 3
"""Number of items that a sentence names."""
SAMPLE = 64
"""Number of features that are compared with each other."""
TOLERANCE = 1e-4
"""Largest difference of cosines that count as equal. Those of an untrained ViT-S differ by 2e-3 within a photo."""
PATCHES_EQUAL = (
    "the patch features of an image do not differ in direction (all cosines are equal), so that no patch can be told "
    "from another; check the weights, and the image for a single colour"
)
IMAGES_EQUAL = (
    "image features do not differ in direction (all cosines are equal), so that no image can be told from another; "
    "check the weights"
)


@dataclass(frozen=True)
class Degenerate:
    """A kind of degenerate input that an evaluation met."""

    what: str
    """Clause on what is degenerate, what follows, and what to do."""
    count: int = 1
    """Number of items concerned; 1 if it is the whole input."""
    total: int = 1
    """Number of items that were checked; 1 if it is the whole input."""
    items: Sequence[str] = field(default_factory=list)
    """Names of the first `NUM_ITEMS` items concerned; empty if the whole input is concerned."""

    def __str__(self) -> str:
        """Return the sentence for a reader."""
        if not self.items:
            return self.what
        shown = ", ".join(self.items[:NUM_SHOWN]) + (", ..." if self.count > NUM_SHOWN else "")
        return f"{self.what} ({self.count} of {self.total}: {shown})"


@dataclass
class _Checks:
    """Checks of one kind on this process. Flags of a device are read in blocks, so that it is rarely waited for."""

    total: int = 0
    count: int = 0
    items: list[str] = field(default_factory=list)
    pending: list[tuple[Tensor, str]] = field(default_factory=list)

    def add(self, flag: Tensor | bool, item: str) -> None:
        self.total += 1
        self.pending.append((torch.as_tensor(flag), item))
        if len(self.pending) >= 256:
            self.read()

    def read(self) -> None:
        pending, self.pending = self.pending, []
        for device in {flag.device for flag, _ in pending}:
            of_device = [(flag, item) for flag, item in pending if flag.device == device]
            flags = torch.stack([flag for flag, _ in of_device]).tolist()
            found = [item for is_degenerate, (_, item) in zip(flags, of_device, strict=True) if is_degenerate]
            self.count += len(found)
            self.items += [item for item in found if item][: NUM_ITEMS - len(self.items)]


class Collector:
    """Checks of an evaluation on this process, by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Checks] = {}

    def add(self, what: str, flag: Tensor | bool, item: str) -> None:
        """Count a check of one item."""
        self._kinds.setdefault(what, _Checks()).add(flag, item)

    def gathered(self) -> list[Degenerate]:
        """Return what was degenerate on any process; all processes call this together."""
        for checks in self._kinds.values():
            checks.read()
        parts: list[tuple[str, int, int, list[str]]] = gather(
            [(what, checks.count, checks.total, checks.items) for what, checks in self._kinds.items()]
        )
        found = []
        for kind in dict.fromkeys(what for what, *_ in parts):
            of_kind = [part for part in parts if part[0] == kind]
            count, total = sum(part[1] for part in of_kind), sum(part[2] for part in of_kind)
            items = [item for part in of_kind for item in part[3]]
            if count:  # what concerns the whole input may be checked by every process
                found.append(Degenerate(kind, count, total, items[:NUM_ITEMS]) if items else Degenerate(kind))
        return found


_active: Collector | None = None


@contextlib.contextmanager
def collecting_degenerate() -> Iterator[Collector]:
    """Collect what the checks inside find."""
    global _active
    before, _active = _active, Collector()
    try:
        yield _active
    finally:
        _active = before


def is_collecting() -> bool:
    """Return whether checks are collected, so that features that only they read have to be computed."""
    return _active is not None


def check_degenerate(what: str, is_degenerate: Tensor | bool, item: str = "") -> None:
    """Report that an input is degenerate.

    Call this for every item, also for those that are not degenerate, so that the result can tell their share. Each
    process checks its own items; what concerns the whole input may be checked by one of them or by all.

    Args:
        what: clause on what is degenerate, what follows, and what to do; the same for all items.
        is_degenerate: bool, or a bool scalar of any device, which is not waited for.
        item: name of the item, e.g. of an image; empty if the whole input is concerned.
    """
    if _active is not None:
        _active.add(what, is_degenerate, item)


def check_patches(features: Tensor, image: str) -> None:
    """Report an image whose patch features [..., D] are constant or have equal cosines."""
    if _active is not None:
        check_degenerate(PATCHES_EQUAL, all_cosines_equal(features.flatten(0, -2)), image)


def check_images(features: Tensor) -> None:
    """Report image features [n, D] that are constant or have equal cosines."""
    if _active is not None:
        check_degenerate(IMAGES_EQUAL, all_cosines_equal(features))


@torch.no_grad()
def all_cosines_equal(features: Tensor) -> Tensor:
    """Return whether the cosines between features [n, D] are all equal, as a bool scalar on their device.

    At most `SAMPLE` features, evenly spread, are compared; fewer than three have nothing to compare. Features of
    length 0 have cosines of 0.
    """
    rows = torch.linspace(0, len(features) - 1, min(SAMPLE, len(features)), device=features.device).round().long()
    unit = F.normalize(features[rows].float(), dim=1)
    if len(unit) < 3:
        return torch.zeros((), dtype=torch.bool, device=features.device)
    # Indexing by a mask would wait for the device, so that the diagonal is replaced.
    cosines = unit @ unit.T
    smallest = cosines.fill_diagonal_(torch.inf).min()
    return cosines.fill_diagonal_(-torch.inf).max() - smallest < TOLERANCE
