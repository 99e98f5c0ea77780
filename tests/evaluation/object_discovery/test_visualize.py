"""Pictures of discovered objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.evaluation.object_discovery import visualize
from selfpatch.evaluation.object_discovery.visualize import COLOURS, draw_boxes
from selfpatch.evaluation.pictures import WHITE


def test_boxes_have_the_colours_of_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: dict[str, Any] = {}
    monkeypatch.setattr(visualize, "with_legend", lambda picture, given: entries.update(given) or picture)
    grey = torch.full((3, 100, 120), 90, dtype=torch.uint8)
    picture = draw_boxes(grey, [(10, 10, 50, 90)], {
        "lost": [(60, 20, 110, 80)], "tokencut": [(10, 10, 50, 50)], "maskcut": [(10, 50, 50, 90), (70, 30, 100, 60)],
    })  # fmt: skip
    assert entries == {
        "annotated": WHITE, "lost, IoU 0.00": COLOURS["lost"], "tokencut, IoU 0.50": COLOURS["tokencut"],
        "maskcut, IoU 0.50, 1 more": COLOURS["maskcut"],
    }  # fmt: skip
    assert picture.getpixel((30, 10)) == COLOURS["tokencut"], "above the annotated one"
    assert picture.getpixel((30, 89)) == picture.getpixel((85, 30)) == COLOURS["maskcut"], "both of its boxes"
    assert picture.getpixel((85, 20)) == COLOURS["lost"]
