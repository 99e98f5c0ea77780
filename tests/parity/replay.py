"""Choice of the replay for a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.parity.check import Check
from tests.parity.davis_metric import replay_davis_metric
from tests.parity.pieces import replay_pieces
from tests.parity.trajectory import replay_trajectory


def replay(bundle: Path) -> Iterator[Check]:
    """Compare everything in a bundle with what the project computes.

    Raises:
        ValueError: the folder is not a bundle.
    """
    if (bundle / "trajectory.json").is_file():
        return replay_trajectory(bundle)
    if (bundle / "tensors.safetensors").is_file() and (bundle / "expected.json").is_file():
        return replay_pieces(bundle)
    if (bundle / "expected.json").is_file() and (bundle / "DAVIS").is_dir():
        return replay_davis_metric(bundle)
    raise ValueError(f"{bundle} is no golden bundle; give a folder with trajectory.json or expected.json")
