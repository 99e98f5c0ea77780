"""Copies to a device: only CUDA's go on while the source may be freed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import selfpatch
from selfpatch.core.transfer import to_device


class Source:
    """A tensor that records how it is copied."""

    def to(self, device: torch.device | str, *, non_blocking: bool) -> bool:
        return non_blocking


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("cuda:1", False), ("mps", True), ("cpu", True)])
def test_devices_other_than_cuda_are_waited_for(device: str, waits: bool) -> None:
    source: torch.Tensor = Source()  # type: ignore[assignment]
    assert to_device(source, device) is not waits
    assert to_device(source, torch.device(device)) is not waits


def test_no_other_code_chooses() -> None:
    root = Path(selfpatch.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "non_blocking" in path.read_text()}
    assert found == {"core/transfer.py", "core/deferred_flag.py"}, "the latter copies from CUDA"
