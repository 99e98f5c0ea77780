"""Files that are no features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from selfpatch.embedding.read import read_embeddings


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    for name in ("cut.safetensors", "weights.safetensors", "text.npz", "other.npz"):
        with pytest.raises(ValueError, match=rf"{name} is no file of `selfpatch embed` \(.*\); write it again"):
            read_embeddings(tmp_path / name)
    with pytest.raises(OSError, match="No such file"):
        read_embeddings(tmp_path / "away.npz")
