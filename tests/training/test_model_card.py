"""Model card: what it tells of a run, and what it keeps to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfpatch.checkpoints.export.export import POOL_IS_LEFT_OUT
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.training.model_card import ModelCard, public_settings
from tests.helpers.labelled_images import tiny_encoder


def run_from(path: Path, **settings: Any) -> RunDirectory:
    return RunDirectory.create(path, {"method": "dino", "objective": "selfpatch+koleo", **settings})


def card(run: RunDirectory | None, *about: str, license: str | None = None) -> str:
    return ModelCard("me/net", "timm", "use it", about, license, run).text(tiny_encoder("vit"))


@pytest.mark.parametrize(
    ("init", "base"),
    [
        ("hf:facebook/dinov2-small@main", "facebook/dinov2-small"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m"),
        ("/home/me/secret/weights.pth", None),
    ],
)
def test_the_base_model_is_named_where_the_hub_has_it(tmp_path: Path, init: str, base: str | None) -> None:
    run = run_from(tmp_path / "run", init=init, data="/home/me/secret/photos", out="/home/me/secret/run")
    (run.path / "data.json").write_text(json.dumps({"images": 1234, "fingerprint": "x"}))
    (run.path / "metrics.jsonl").write_text(
        '{"step": 0, "view_matching": 0.2, "view_matching_mean_colour": 0.1}\n{"step": 70, "view_matching": 0.5}\n'
    )
    text = card(run, license="mit")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front.get("base_model") == base
    assert {"dino", "selfpatch", "koleo"} <= {*front["tags"]}
    assert "secret" not in text
    assert "| training images | 1,234 |" in text
    assert "| steps | 70 |" in text
    assert "10.0 | 20.0 | 50.0 |" in text
    assert f"from the weights of {public_settings(run.settings)['init']}" in text


def test_a_network_without_a_run_or_license() -> None:
    text = card(None, "A caveat.")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "A caveat." in text
    assert "Exported by [selfpatch]" in text
    assert "## Training" not in text


def test_parameters_are_those_of_the_files() -> None:
    encoder = tiny_encoder("vit with a pool")
    whole = ModelCard("me/net", "selfpatch", "", (), None, None).text(encoder)
    trunk = ModelCard("me/net", "timm", "", (POOL_IS_LEFT_OUT,), None, None).text(encoder)
    count = sum(p.numel() for p in encoder.backbone.parameters())
    assert "with the pool that makes its image feature" in whole
    assert "with the pool" not in trunk
    assert f"of {count / 1e6:.3g} M parameters" in trunk
