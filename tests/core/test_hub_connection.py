"""Weights of timm without a connection: nothing is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.models.backbones.build import build_timm

NAME, REPOSITORY = "vit_tiny_patch16_224", "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_weights_of_timm_are_read_from_the_cache_or_refused_after_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def wait(seconds: float) -> None:
        raise AssertionError("the library tries again")

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", wait)
    with pytest.raises(ValueError, match="the weights of timm's 'vit_tiny_patch16_224' cannot be fetched"):
        build_timm(NAME, pretrained=True)
    assert not constants.HF_HUB_OFFLINE
    commit = "0" * 40
    file = tmp_path / REPOSITORY / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    state = build_timm(NAME).trunk.state_dict()
    head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    save_file({key: torch.ones_like(x) for key, x in state.items()} | head, file)
    (tmp_path / REPOSITORY / "refs").mkdir()
    (tmp_path / REPOSITORY / "refs" / "main").write_text(commit)
    assert (build_timm(NAME, pretrained=True).trunk.norm.weight == 1).all()
