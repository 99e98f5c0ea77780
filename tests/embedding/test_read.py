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
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "number.safetensors").write_bytes(b"\1" + bytes(7) + b"5")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "short.npz", names=["a", "b"], image=np.zeros((1, 3)), metadata="{}")
    np.savez(tmp_path / "list.npz", names=["a"], metadata="[]")
    for path in sorted(tmp_path.iterdir()):
        name = path.name
        with pytest.raises(ValueError, match=rf"{name} is no file of `selfpatch embed` \(.*\); write it again"):
            read_embeddings(tmp_path / name)
    with pytest.raises(OSError, match="No such file"):
        read_embeddings(tmp_path / "away.npz")
