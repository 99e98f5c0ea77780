"""Settings of the comparison with other packages."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, MinLen
from pydantic import PositiveInt

from benchmarks.config import Clock
from selfpatch.config.schema import Workers, settings

Peer = Literal["lightly", "lightly-train", "stable-pretraining"]
Part = Literal["loader", "training"]

OURS = "selfpatch"
MODULES: dict[str, str] = {
    OURS: "selfpatch_dino",
    "lightly": "lightly_dino",
    "lightly-train": "lightly_train_dino",
    "stable-pretraining": "stable_pretraining_dino",
}
"""Module of `benchmarks.peers` that trains each package."""
WITHOUT_LOADER = ("lightly-train",)
"""Packages whose loader has no public function of its own."""


@settings
class PeersConfig:
    """Time DINO of other packages against selfpatch's, from image files to training steps, in turns."""

    peers: Annotated[tuple[Peer, ...], MinLen(1)] = ("lightly", "lightly-train", "stable-pretraining")
    """Packages to compare with."""
    venvs: str | None = None
    """Folder with a virtual environment for each package, called as it is; defaults to this environment."""
    parts: Annotated[tuple[Part, ...], MinLen(1)] = ("loader", "training")
    """The loader alone in one process, and the whole training."""
    data: str | None = None
    """Folder with one folder of images for each class; if not given, photographs of 500 x 375 pixels are cut out of
    scikit-image's."""
    model: str = "vit_small"
    """Vision transformer with patches of 16 pixels, by the beginning of timm's name."""
    batch_size: PositiveInt = 4
    """Number of images in a step."""
    workers: Workers = 1
    """Loader processes of a training."""
    precisions: Annotated[tuple[Literal["float32", "bfloat16"], ...], MinLen(1)] = ("float32", "bfloat16")
    """Types of autocast; one that the device emulates is left out."""
    num_prototypes: PositiveInt = 65536
    """Outputs of DINO's head."""
    rounds: PositiveInt = 5
    """Number of turns of each package."""
    steps: PositiveInt = 2
    """Number of steps in a turn; of the loader alone ten times as many."""
    clock: Clock = "wall"
    """Time that is counted: of a clock, or of the processor, which other programs hardly change."""
    patience: Annotated[float, Gt(0)] = 600.0
    """Seconds that a turn may take."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    out: str | None = None
    """JSON file for all times, with the machine and the versions."""
