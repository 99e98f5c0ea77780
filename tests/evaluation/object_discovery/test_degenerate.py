"""Images whose object is arbitrary are listed in the result, with the setting that changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.api.evaluate import measure
from selfpatch.evaluation.degenerate import PATCHES_EQUAL
from selfpatch.evaluation.object_discovery.degenerate import FLAWS
from selfpatch.evaluation.result import Result
from tests.evaluation.object_discovery.conftest import ColourAgainstGround, square, tiny_vit, write_voc


class Shifted(ColourAgainstGround):
    """The colour, and a constant beside which it is small: all cosines are near 1, as those of DINOv2's keys."""

    def patches(self, images: Tensor) -> Tensor:
        colours = super().patches(images)
        return torch.cat([colours, torch.full_like(colours[:, :1], 20.0)], dim=1)


class Constant(ColourAgainstGround):
    """The same feature everywhere."""

    def patches(self, images: Tensor) -> Tensor:
        return torch.ones_like(super().patches(images))


def warnings(encoder: Any, voc: Path, **settings: Any) -> dict[str, tuple[int, int, list[str]]]:
    result = measure("discover", encoder, None, voc, **settings)
    return {one.what: (one.count, one.total, list(one.items)) for one in result.degenerate}


def test_a_complete_graph_is_said_and_the_remedies_help(voc: Path, tmp_path: Path) -> None:
    names = ["met", "missed", "second"]
    tokencut = {"methods": ("tokencut",)}
    shifted = Shifted(8)
    found = warnings(shifted, voc, methods=("tokencut", "maskcut"))
    assert found == {FLAWS[method]["complete"]: (3, 3, names) for method in ("tokencut", "maskcut")}
    sparse = warnings(shifted, voc, methods=("maskcut",), maskcut_tau=1.0)
    assert sparse == {FLAWS["maskcut"]["sparse"]: (3, 3, names)}
    assert "use a lower --maskcut-tau or --tau-quantile" in FLAWS["maskcut"]["sparse"]
    for remedy in ({"centre": True}, {"tau_quantile": 0.5}):
        result = measure("discover", shifted, None, voc, **tokencut, **remedy)
        assert result.degenerate == []
        assert result.metrics["CorLoc tokencut"] == pytest.approx(2 / 3)
    assert warnings(shifted, voc, **tokencut, tau=1.0) == {FLAWS["tokencut"]["sparse"]: (3, 3, names)}
    out = tmp_path / "out"
    out.mkdir()
    stored = measure("discover", shifted, None, voc, **tokencut, out=out)
    stored.save(out / "result.json")
    (sentence,) = Result.load(out / "result.json").warnings
    assert sentence.endswith("use --tau-quantile 0.4, --facet token or --centre (3 of 3: met, missed, second).")


def test_constant_features_are_said_for_every_method(voc: Path) -> None:
    found = warnings(Constant(8), voc)
    assert {what.split(" (")[0].split(",")[0] for what in found} == {
        "the patch features of an image do not differ in direction",
        "nearly no patch is similar to another for LOST",  # standardised to zeros
        "nearly no pair of patches has a cosine above tau",
    }
    assert {counts[:2] for counts in found.values()} == {(3, 3)}


def test_one_image_of_several(tmp_path: Path) -> None:
    """A plain image of whole patches beside one with an object."""
    plain = square(0, 0, 0, 0, size=(80, 96))
    voc = write_voc(
        tmp_path, {"thing": (square(24, 16, 64, 48), [((25, 17, 64, 48), "")]), "plain": (plain, [((1, 1, 9, 9), "")])}
    )
    found = warnings(ColourAgainstGround(8), voc, methods=("tokencut",), tau_quantile=0.5)
    assert set(found) == {PATCHES_EQUAL, FLAWS["tokencut"]["complete"]}
    assert [*found.values()] == [(1, 2, ["plain"])] * 2


def test_uniform_attention_is_said(voc: Path) -> None:
    encoder = tiny_vit()
    with torch.no_grad():
        encoder.backbone.trunk.blocks[-1].attn.qkv.weight.zero_()
    assert warnings(encoder, voc, methods=("attention",)) == {
        FLAWS["attention"]["uniform"]: (3, 3, ["met", "missed", "second"])
    }
