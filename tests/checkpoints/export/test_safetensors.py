"""Exported files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from selfpatch.checkpoints.export.safetensors import write_safetensors


def test_tensors_that_share_memory_are_written_with_their_metadata(tmp_path: Path) -> None:
    qkv, path = torch.randn(6, 4), tmp_path / "exported" / "backbone.safetensors"
    written = write_safetensors(path, {"q": qkv[:2], "k": qkv[2:4], "transposed": qkv.T}, {"model": "vit_tiny"})
    assert written == path
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "vit_tiny"}
        assert torch.equal(file.get_tensor("k"), qkv[2:4])
        assert torch.equal(file.get_tensor("transposed"), qkv.T)
