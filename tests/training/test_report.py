"""The page of a run: its sections, in percent, from config.yaml and metrics.jsonl alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.training.history import record_start
from selfpatch.training.report import losses_without_progress, measured, measured_table, write_run_report
from tests.helpers.html_page import Page
from tests.helpers.svg_curves import legend, words

SETTINGS = {"data": "photos <1>", "method": "dino", "seed": 0, "crops": {"num_local": 2}}
ROWS = [
    {"step": 0, "view_matching": 0.25, "view_matching_mean_colour": 0.125},
    {"step": 5, "loss": 6.0, "patch": 5.5, "lr": 0.001, "images_per_second": 90.0, "effective_rank": 20.0},
    {"step": 10, "loss": 5.0, "patch": 4.5, "lr": 0.002, "images_per_second": 95.0, "effective_rank": 18.0},
    {"step": 10, "view_matching": 0.5},
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return RunDirectory.open(tmp_path)


def test_metrics_are_in_percent_beside_their_baselines() -> None:
    assert measured(ROWS) == [("view matching", "12.5", "25.0", "50.0")]
    assert measured(ROWS[1:3]) == []


def test_the_page_holds_table_curves_sheet_and_settings(run: RunDirectory) -> None:
    run.pictures.mkdir()
    for name in ("before-and-after", *(f"step-{step:08d}" for step in range(9))):
        Image.new("RGB", (5, 4)).save(run.pictures / f"{name}.png")
    record_start(run.path, torch.device("cpu"))
    text = write_run_report(run, ["loss", "patch"]).read_text(encoding="utf-8")
    page = Page(text)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Measured", "Losses", "Feature rank", "On held-out images", "Learning rate", "Speed", "Patch features",
        "Patch features over time", "History", "Settings",
    ]  # fmt: skip
    drawn = [set(legend(image.decode())) for mime, image in page.images() if mime == "image/svg+xml"]
    assert drawn == [
        {"loss", "patch"},
        {"effective_rank"},
        {"view matching"},
        {"lr"},
        {"images_per_second"},
    ]
    held_out = next(image.decode() for _, image in page.images() if b"view matching" in image)
    assert {"fraction", "step", "view matching, mean patch colour"} <= {*words(held_out)}
    sheets = [name for name in re.findall('alt="(.*?)"', text) if name.startswith("step-")]
    assert sheets == [f"step-{step:08d}" for step in (0, 2, 4, 6, 8)], "evenly spread"
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "crops.num_local" in page.words, "all settings are there, folded"
    assert {"untrained", "12.5", "25.0", "50.0", "photos <1>", "dino"} <= set(page.words)
    table = measured_table(run)
    assert table is not None
    assert table.row_count == 1


def test_the_page_names_a_loss_that_ends_where_uniform_predictions_lie(run: RunDirectory) -> None:
    assert losses_without_progress([]) is None
    assert losses_without_progress(ROWS) is None
    last = ROWS[2] | {"patch": 6.2, "uniform_patch": 6.24}
    line = "no better than uniform predictions at the end: patch 6.20 of 6.24 nats"
    assert losses_without_progress([*ROWS[:2], last, ROWS[3]]) == line
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:2], last, ROWS[3]]))
    assert line in write_run_report(run, ["loss", "patch"]).read_text(encoding="utf-8")
