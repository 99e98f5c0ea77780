"""A run on crops twice as wide as high: dry run, loader, masks, pairs, meters, checkpoints and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import selfpatch
from selfpatch.checkpoints.export.timm import read_features
from selfpatch.config.run import RunConfig
from selfpatch.models.backbones.positions import add_positions
from selfpatch.models.backbones.vit import ViT
from selfpatch.training.factory import make_student_teacher
from tests.helpers.tiny import tiny_config, tiny_views, wide_crops

OBJECTIVES = "selfpatch+sere+paka+sere_pairs"
WIDE = wide_crops(tiny_config())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth wide images in two classes."""
    rng = np.random.default_rng(0)
    for i in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 9, 3), dtype=np.uint8))
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((96, 40), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_run_on_wide_crops(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(method="ibot", objective=OBJECTIVES).override(WIDE)
    how: dict[str, Any] = {"data": str(photos), "out": str(tmp_path / "run"), "epochs": 2, "device": "cpu"}
    how |= {"precision": "fp32", "loader": {"held_out": 4, "workers": 0}, "watch": {"log_every": 1}}
    config = config.override(how)
    report = selfpatch.pretrain(**config.to_dict(), dry_run=True)
    assert "backbone, one image of 16 x 32 pixels" in report.flops
    out = selfpatch.pretrain(**config.to_dict())
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert (saved["crops"]["global_size"], saved["pairs"]["contained_size"]) == ([16, 32], [12, 24])
    resumed = RunConfig.from_saved(saved, out / "config.yaml")
    assert (resumed.crops, resumed.pairs) == (config.crops, config.pairs)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("view_matching" in line for line in lines)
    assert any("knn_top1" in line for line in lines)
    assert sorted((out / "pictures").glob("step-*.png"))

    encoder = selfpatch.load(out)
    images = torch.randn(2, 3, 16, 32, generator=torch.manual_seed(0))
    assert encoder.patches(images).shape == (2, 16, 4, 8)
    selfpatch.export(out, "timm", tmp_path / "timm")
    square = images[..., :16]  # the side of the grid of positions, at which timm adds the same
    torch.testing.assert_close(read_features(tmp_path / "timm", square).patches, encoder.patches(square))


def test_every_position_of_a_new_network_is_trained_on_wide_crops_alone() -> None:
    """The stored grid is square, as high as the crops; a larger one would keep some of its random initial values."""
    student_teacher, _ = make_student_teacher(tiny_config(method="none", objective="sere").override(WIDE))
    backbone = student_teacher.student.backbone
    assert isinstance(backbone, ViT)
    assert backbone.config.grid == 4
    embedded = torch.zeros(1, 4, 8, 16)
    positions = backbone.trunk.pos_embed
    assert positions is not None
    rows = []
    for weight in torch.eye(32).unflatten(1, (4, 8)):  # gradients of 32 positions of the crop
        placed = add_positions(backbone.trunk, embedded, "released")[0, -32:].unflatten(0, (4, 8))
        (gradient,) = torch.autograd.grad((placed * weight[..., None]).sum(), positions)
        rows.append(gradient[0, -16:, 0])
    assert torch.linalg.matrix_rank(torch.stack(rows)) == 16


def test_views_of_the_wrong_shape_do_not_pass_unnoticed() -> None:
    """Masks have the grid of the crops, so that a turned one cannot be laid on."""
    student_teacher, _ = make_student_teacher(tiny_config(method="ibot", objective="none").override(WIDE))
    views = tiny_views(2, wide=True)
    assert views.masks is not None
    crops = student_teacher.student.backbone(views.global_crops[0].float(), views.masks[0])
    assert crops.patches.shape[1:3] == views.masks.shape[2:] == (4, 8)
    with pytest.raises(RuntimeError):
        student_teacher.student.backbone(views.global_crops[0].float(), views.masks[0].mT)
