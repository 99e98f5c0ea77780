"""Weights that are none are refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import selfpatch
from selfpatch.api.encoder import open_encoder


@pytest.mark.parametrize("weights", [3, 2.5, None, True, [], {}, b"x.pth", "", object(), ["a"] * 1000, "x" * 0])
def test_what_names_no_weights_is_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"^weights are .{1,90}; name a run directory, a checkpoint or timm:NAME"):
        selfpatch.load(weights)


@pytest.mark.parametrize("weights", ["nowhere", Path("no/where.pth"), "no\nwhere", "timm:", "\0", "x" * 5000])
def test_names_of_nothing_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"no weights at|unknown model") as refused:
        selfpatch.load(weights, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_network_of_timm_is_told_how_it_is_measured() -> None:
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    with pytest.raises(ValueError, match=r"a VisionTransformer, .* its state dict .* load_options=\{'prefix_tokens"):
        open_encoder(model)
    encoder, _ = open_encoder(model.forward_features, patch_size=16, load_options={"prefix_tokens": 1})
    assert encoder.patches(torch.zeros(1, 3, 32, 48)).shape == (1, 64, 2, 3)


def test_a_class_is_no_encoder() -> None:
    with pytest.raises(ValueError, match=r"say how large its patches are, e.g. patch_size=16"):
        open_encoder(dict)  # type: ignore[arg-type]
