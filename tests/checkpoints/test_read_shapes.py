"""Weights in a dry run: every format is read as far as its shapes, and gives the network that a real run gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.core.dry_run import dry_run
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.tiny import tiny_student_teacher


def as_dino(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of DINO: both sides, and options of its command."""
    trunk = {name.removeprefix("backbone.trunk."): t for name, t in state.items() if name.startswith("backbone.trunk.")}
    return {"teacher": {f"backbone.{name}": tensor for name, tensor in trunk.items()}, "epoch": 3}


def write_zip(encoder: BranchEncoder, folder: Path) -> Path:
    torch.save(as_dino(encoder.state_dict()), folder / "zip.pth")
    return folder / "zip.pth"


def write_legacy(encoder: BranchEncoder, folder: Path) -> Path:
    torch.save(as_dino(encoder.state_dict()), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder / "legacy.pth"


def write_export(encoder: BranchEncoder, folder: Path) -> Path:
    return write_safetensors(folder / "backbone.safetensors", *export_state(encoder))


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_export])
@pytest.mark.parametrize("model", ["vit_tiny", "swin_tiny", "resnet50"])
def test_shapes_are_those_of_the_weights(
    write: Callable[[BranchEncoder, Path], Path], model: str, tmp_path: Path
) -> None:
    student_teacher = tiny_student_teacher(model=model, objective="none")
    path = str(write(BranchEncoder(student_teacher.teacher.backbone, None).eval(), tmp_path))
    real = read_weights(path)
    with dry_run():
        dry, (encoder, report) = read_weights(path), load_encoder(path)
    assert (dry.config, dry.left_out, dry.sha256) == (real.config, real.left_out, None)
    assert {name: tensor.shape for name, tensor in dry.state.items()} == {n: t.shape for n, t in real.state.items()}
    assert all(tensor.is_meta for tensor in dry.state.values())
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert report.matched == load_encoder(path)[1].matched


def test_files_that_cannot_be_read_are_refused_alike(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"nothing"), ("a.safetensors", b"nothing"), ("b.pth", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        sentences = []
        for enabled in (True, False):
            with dry_run(enabled=enabled), pytest.raises(ValueError, match=name) as refused:
                read_weights(str(tmp_path / name))
            sentences.append(str(refused.value))
        assert sentences[0] == sentences[1]
