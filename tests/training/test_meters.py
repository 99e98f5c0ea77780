"""Meters of the tokens of one side."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core.types import EncoderOutput, Tokens
from selfpatch.training.meters import token_meters


@pytest.mark.parametrize("on_pairs", [False, True])
def test_planted_artefacts_show_before_the_final_norm(on_pairs: bool) -> None:
    raw = torch.randn(2, 5, 5, 16, generator=torch.manual_seed(0))
    raw[0, 1, 2] *= 20
    tokens = Tokens(None, torch.nn.functional.layer_norm(raw, (16,)), raw)
    image = torch.empty(0, 0, 16) if on_pairs else torch.eye(16)[None]
    meters = token_meters(EncoderOutput(image, () if on_pairs else (tokens,), {}, None, tokens if on_pairs else None))
    assert float(meters["patch_outliers"]) == pytest.approx(1 / 50)
    assert 1 < float(meters["patch_rank"]) < 16
    assert on_pairs == ("effective_rank" not in meters)
    assert on_pairs or float(meters["effective_rank"]) > 14
