"""Average precision by pycocotools, and the whole evaluation from images to numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.cli.options.detect import Detect
from selfpatch.cli.options.weights import EvaluationOptions
from selfpatch.evaluation.baselines import MeanColour
from selfpatch.evaluation.detection.config import PRESETS
from selfpatch.evaluation.detection.dataset import AnnotatedImage, open_split
from selfpatch.evaluation.detection.evaluate import average_precision, evaluate
from selfpatch.evaluation.detection.masks import from_pixels, packed, to_pixels
from selfpatch.evaluation.detection.metrics import STATISTICS
from selfpatch.evaluation.detection.predictions import BOXES, MASKS, Detections, detect_all, save
from selfpatch.evaluation.probe_training import TrainingPlan
from selfpatch.evaluation.result import Result
from tests.helpers.detect_data import annotation, outline, read_json, tiny_encoder, write_json, write_split

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools

TINY: dict[str, Any] = {
    "preset": "small", "train_split": "train", "test_split": "val", "width": 8, "proposals": 30, "rois": 16,
    "short_sides": (32, 48), "long_side": 64, "batch_size": 2, "epochs": 3.0,
    "anchor_scale": 4.0, "lr": 1e-3, "lr_batch": 4, "warmup_steps": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_split(tmp_path_factory.mktemp("coco"), "train", images=5)
    return write_split(root, "val", images=4, seed=1)


def oracle(image: AnnotatedImage) -> Detections:
    """Finds what is annotated."""
    boxes = torch.tensor([one.box for one in image.objects()]).view(-1, 4)
    labels = torch.tensor([one.label for one in image.objects()], dtype=torch.int64)
    masks = [packed(one.segmentation, image.height, image.width) for one in image.objects()]
    pixels = to_pixels(masks, image.height, image.width)
    return Detections(boxes, labels, torch.ones(len(boxes)), [from_pixels(mask) for mask in pixels])


def noise(image: AnnotatedImage) -> Detections:
    rng = np.random.default_rng(image.id)
    corners = np.sort(rng.uniform(0, 1, (100, 2, 2)), axis=1) * [image.width, image.height]
    masks = [from_pixels(rng.random((image.height, image.width)) < 0.5) for _ in range(100)]
    labels = torch.from_numpy(rng.integers(1, 4, 100))
    return Detections(torch.from_numpy(corners.reshape(100, 4)), labels, torch.from_numpy(rng.random(100)), masks)


@pytest.mark.parametrize(("detector", "low", "high"), [(oracle, 1.0, 1.0), (noise, 0.0, 0.05)])
def test_the_truth_scores_1_and_noise_nearly_0(data: Path, detector: Any, low: float, high: float) -> None:
    split = open_split(data, "val")
    metrics, rows = average_precision(split, *detect_all(detector, split))
    assert [row["category"] for row in rows] == ["disk", "triangle", "square"]
    assert [row["objects"] for row in rows] == [3, 3, 3]  # the crowd is none
    for value in (metrics["box AP"], metrics["mask AP"], *(row[k] for row in rows for k in ("box AP", "mask AP"))):
        assert low - 1e-9 <= float(value) <= high + 1e-9


def test_the_truth_scores_1_on_real_annotations(data_dir: Path) -> None:
    split = open_split(data_dir / "coco_mini", "val2017")
    metrics, rows = average_precision(split, *detect_all(oracle, split))
    assert metrics["box AP"] == pytest.approx(1.0)
    assert metrics["mask AP"] == pytest.approx(1.0)
    assert len(rows) == 68


def test_a_half_found_set_scores_as_computed_by_hand(tmp_path: Path) -> None:
    """One of two squares found, exactly: precision 1 up to recall 1/2, that is at 51 of 101 points."""
    write_split(tmp_path, "val", images=1)
    content = read_json(tmp_path, "val")
    boxes = [(5.0, 5.0, 25.0, 25.0), (30.0, 10.0, 60.0, 40.0)]
    content["annotations"] = [annotation(n, 100, 90, outline(90, box)) for n, box in enumerate(boxes, start=1)]
    write_json(tmp_path, "val", content)
    split = open_split(tmp_path, "val")

    def half(image: AnnotatedImage) -> Detections:
        found = oracle(image)
        return Detections(found.boxes[:1], found.labels[:1], found.scores[:1], found.masks[:1])

    metrics, _ = average_precision(split, *detect_all(half, split))
    assert metrics["box AP"] == pytest.approx(51 / 101)
    assert metrics["mask AP50"] == pytest.approx(51 / 101)


def test_nothing_found_scores_0(data: Path) -> None:
    metrics, rows = average_precision(open_split(data, "val"), [], [])
    assert metrics["box AP"] == metrics["mask AP"] == 0
    assert all(row["box AP"] == 0 for row in rows)


def by_itself(data: Path, out: Path, file: str, kind: str) -> list[float]:
    truth = coco.COCO(str(data / "annotations" / "instances_val.json"))
    scored = cocoeval.COCOeval(truth, truth.loadRes(str(out / file)), kind)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return [float(value) for value in scored.stats]


def test_the_numbers_are_those_of_pycocotools_by_itself(data: Path, tmp_path: Path) -> None:
    """On boxes and masks that are a little off, some missing and some twice, so that no number is 0 or 1."""

    def blurred(image: AnnotatedImage) -> Detections:
        rng = np.random.default_rng(image.id)
        found, wrong = oracle(image), noise(image)
        boxes = torch.cat([found.boxes[1:] + torch.from_numpy(rng.normal(0, 0.8, (1, 4))).float(), wrong.boxes])
        labels = torch.cat([found.labels[1:], wrong.labels])
        return Detections(boxes, labels, torch.from_numpy(rng.random(len(boxes))), [*found.masks[1:], *wrong.masks])

    split = open_split(data, "val")
    boxes, masks = detect_all(blurred, split)
    save(tmp_path, boxes, masks)
    metrics, _ = average_precision(split, boxes, masks)
    assert 0 < metrics["box AP"] < metrics["box AP50"] < 1
    assert 0 < metrics["mask AP"] < 1
    compare_with_pycocotools(metrics, data, tmp_path)


def compare_with_pycocotools(metrics: Mapping[str, float], data: Path, out: Path) -> None:
    for name, file, kind in (("box", BOXES, "bbox"), ("mask", MASKS, "segm")):
        stats = by_itself(data, out, file, kind)
        for statistic, value in zip(STATISTICS, stats, strict=False):
            assert metrics.get(f"{name} {statistic}", -1.0) == value


def test_a_whole_evaluation_is_written_down(data: Path, tmp_path: Path) -> None:
    result = evaluate(tiny_encoder(), data, out=tmp_path, **{**TINY, "epochs": 20.0, "lr": 2e-3})
    compare_with_pycocotools(result.metrics, data, tmp_path)
    ids = {row["category_id"] for row in json.loads((tmp_path / BOXES).read_text())}
    assert ids <= {3, 7, 90}
    assert Result.load(tmp_path / "result.json").metrics == result.metrics
    assert result.settings["rate"] == 2e-3 * 2 / 4
    assert result.settings["strides"] == [4, 8, 16, 32, 64]
    assert result.settings["epochs"] == 20


class Stop(Exception):
    pass


def test_a_stopped_evaluation_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "augmentation": "multi-scale", "drop_path": 0.2}
    whole = evaluate(tiny_encoder(), data, out=tmp_path / "whole", **settings)
    monkeypatch.setattr("selfpatch.evaluation.detection.training.TrainingPlan", partial(TrainingPlan, save_every=0.0))

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 3):
            raise Stop

    with pytest.raises(Stop):
        evaluate(tiny_encoder(), data, out=tmp_path / "stopped", progress=stop, **settings)
    seen: list[tuple[str, int]] = []
    resumed = evaluate(
        tiny_encoder(),
        data,
        out=tmp_path / "stopped",
        progress=lambda what, done, _: seen.append((what, done)),
        **settings,
    )
    assert resumed.metrics == whole.metrics
    for file in (BOXES, MASKS):
        assert (tmp_path / "stopped" / file).read_text() == (tmp_path / "whole" / file).read_text()
    with pytest.raises(ValueError, match="a training with other settings"):
        evaluate(tiny_encoder(), data, out=tmp_path / "stopped", **{**settings, "lr": 1.0})


def test_grey_tiny_and_long_images_are_trained_on_and_searched(tmp_path: Path) -> None:
    write_split(tmp_path, "train", images=2)
    content = read_json(tmp_path, "train")
    for number, size in ((7, (1, 1)), (8, (3000, 40))):
        Image.new("L", size, 128).save(tmp_path / "train" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        points = outline(90, (0.0, 0.0, float(size[0]), float(size[1])))
        content["annotations"].append(annotation(number, number, 90, points))
    write_json(tmp_path, "train", content)
    settings = {**TINY, "test_split": "train", "negatives": True, "epochs": 2.0}
    assert 0 <= evaluate(tiny_encoder(), tmp_path, **settings).metrics["box AP"] <= 1


def test_loader_processes_change_nothing(data: Path) -> None:
    settings = {**TINY, "augmentation": "large-scale-jitter", "epochs": 1.0}
    here, there = (evaluate(tiny_encoder(), data, **settings, workers=workers) for workers in (0, 1))
    assert here.metrics == there.metrics


def test_what_cannot_be_trained_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a MeanColour has none"):
        evaluate(MeanColour(8), data, **TINY)
    satellite = tiny_encoder(in_channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ValueError, match="takes 4 channels"):
        evaluate(satellite, data, **TINY)
    with pytest.raises(ValueError, match="blocks are for pyramid inner-maps"):
        evaluate(tiny_encoder(), data, **TINY, pyramid="last-map", blocks=(1, 2, 3, 4))
    with pytest.raises(ValueError, match="precision is 'half'"):
        evaluate(tiny_encoder(), data, **TINY, precision="half")  # type: ignore[arg-type]
    write_split(tmp_path, "train")
    write_split(tmp_path, "val")
    content = read_json(tmp_path, "val")
    content["categories"].append({"id": 91, "name": "star"})
    write_json(tmp_path, "val", content)
    with pytest.raises(ValueError, match=r"list other categories \(id 91 is in one only\)"):
        evaluate(tiny_encoder(), tmp_path, **TINY)


def test_a_missing_pycocotools_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("selfpatch.evaluation.detection.masks.importlib.import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'selfpatch\[detect\]'"):
        evaluate(tiny_encoder(), data, **TINY)


def test_the_options_are_the_settings() -> None:
    handed = {"encoder", "weights", "progress"}
    wanted = {name: p.default for name, p in signature(evaluate).parameters.items() if name not in handed}
    common = {field.name for field in fields(EvaluationOptions)} - {"data", "out"}
    given = {field.name: field.default for field in fields(Detect) if field.name not in common}
    assert given.keys() == wanted.keys()
    assert all(given[name] == wanted[name] for name in given if name != "data")
    assert get_args(get_type_hints(Detect)["preset"]) == tuple(PRESETS)
