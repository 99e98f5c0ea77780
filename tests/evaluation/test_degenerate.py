"""Degenerate inputs are counted and named on all processes, and reach the result, its table, reports, comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfpatch.api.evaluate import evaluate
from selfpatch.evaluation.compare import compare
from selfpatch.evaluation.degenerate import (
    IMAGES_EQUAL,
    NUM_ITEMS,
    PATCHES_EQUAL,
    Degenerate,
    all_cosines_equal,
    check_degenerate,
    check_images,
    check_patches,
    collecting_degenerate,
)
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.result import Result
from selfpatch.experiments.entries import Entry, Outcome
from selfpatch.experiments.suite_report import write_reports
from tests.helpers.labelled_images import coloured_folder
from tests.helpers.workers import WorkerPool

NOISE = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.ones(100, 8), True),
        (torch.zeros(100, 8), True),
        (torch.ones(100, 8) * torch.arange(1, 101)[:, None], True),  # lengths do not matter to cosines
        (torch.eye(8), True),
        (torch.ones(100, 8) + 1e-5 * NOISE, True),
        (NOISE, False),
        (torch.ones(100, 8) + 0.05 * NOISE, False),
        (torch.ones(2, 8), False),  # a single cosine
    ],
)
def test_cosines_that_are_all_equal(features: Tensor, expected: bool) -> None:
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    cosines = [float(a @ b) for i, a in enumerate(unit) for b in unit[:i]]
    assert (len(cosines) > 1 and max(cosines) - min(cosines) < 1e-4) == expected
    assert all_cosines_equal(features) == expected


def test_items_are_counted_and_named() -> None:
    check_patches(torch.ones(4, 4, 8), "outside of a collection")
    with collecting_degenerate() as collector:
        for i in range(600):
            check_patches(torch.ones(2, 2, 8) if i % 2 else NOISE[:4].view(2, 2, 8), f"image {i}")
            check_degenerate("never", False, f"image {i}")
        check_images(torch.ones(4, 8))
        check_images(NOISE)
    names = [f"image {i}" for i in range(1, 2 * NUM_ITEMS, 2)]
    patches, images = collector.gathered()
    assert patches == Degenerate(PATCHES_EQUAL, 300, 600, names)
    assert str(patches) == f"{PATCHES_EQUAL} (300 of 600: image 1, image 3, image 5, ...)"
    assert images == Degenerate(IMAGES_EQUAL)
    assert str(images) == IMAGES_EQUAL


def _on_two_processes(rank: int = 0) -> list[Degenerate]:
    from selfpatch.evaluation.sharding import share_of

    with collecting_degenerate() as collector:
        for i in share_of(5):
            check_degenerate("per item", i != 1, f"item {i}")
        check_degenerate("whole", True)
    return collector.gathered()


@pytest.mark.slow
def test_two_processes_report_what_one_does(pool: WorkerPool) -> None:
    expected = [Degenerate("per item", 4, 5, ["item 0", "item 2", "item 3", "item 4"]), Degenerate("whole")]
    assert _on_two_processes() == expected
    assert pool.run(_on_two_processes) == [expected, expected]


class Constant(MeanColour):
    def patches(self, images: Tensor) -> Tensor:
        return torch.ones_like(super().patches(images))


def test_a_result_says_so_everywhere(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    settings = {"resize": 16, "crop": 16, "ks": (1,)}
    constant = evaluate("knn", Constant(8), data, out=tmp_path / "constant", **settings)
    fine = evaluate("knn", MeanColour(8), data, **settings)
    assert constant.degenerate == [Degenerate(IMAGES_EQUAL)]
    assert Result.load(tmp_path / "constant" / "result.json").degenerate == constant.degenerate
    assert not fine.degenerate
    assert IMAGES_EQUAL in str(constant.table().caption)
    assert "Warning" not in str(fine.table().caption)
    assert compare([fine, constant]).warnings == [f"result 2: Warning: {IMAGES_EQUAL}."]
    outcome = Outcome(Entry(1, "knn", str(data), {}), replace(constant, notes=["a note"]))
    write_reports([outcome], tmp_path, "Report")
    for page in ("report.html", "report.md"):
        text = (tmp_path / page).read_text()
        assert text.count("all cosines are equal") == 2, "in the summary and in the section"
        assert "a note" in text
