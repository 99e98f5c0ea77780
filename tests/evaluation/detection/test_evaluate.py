"""Detection from images to numbers: what is written, stopped, resumed and refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfpatch.api.evaluate import measure
from selfpatch.cli.main import main
from selfpatch.core.dry_run import dry_run
from selfpatch.evaluation.detection import training
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.evaluate import evaluate
from selfpatch.evaluation.detection.predictions import BOXES, MASKS
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Output, Result
from selfpatch.evaluation.workload import DryRunEnds
from tests.helpers.detect_data import (
    QUICK,
    annotation,
    change,
    compare_with_pycocotools,
    outline,
    read_json,
    tiny_encoder,
    write_json,
    write_split,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


TINY: dict[str, Any] = {
    "preset": "small", "train_split": "train", "test_split": "val", "width": 8, "proposals": 30, "rois": 16,
    "short_sides": (32, 48), "long_side": 64, "batch_size": 2, "epochs": 3.0,
    "anchor_scale": 4.0, "lr": 1e-3, "lr_batch": 4, "warmup_steps": 20,
}  # fmt: skip


@pytest.mark.slow
def test_a_whole_evaluation_is_written_down(coco_data: Path, tmp_path: Path) -> None:
    settings = {**TINY, "epochs": 20.0, "lr": 2e-3}
    result = measure("detect", tiny_encoder(), None, coco_data, out=tmp_path, **settings)
    compare_with_pycocotools(result.metrics, coco_data, tmp_path)
    ids = {row["category_id"] for row in json.loads((tmp_path / BOXES).read_text())}
    assert ids <= {3, 7, 90}
    assert Result.load(tmp_path / "result.json").metrics == result.metrics
    assert result.settings["rate"] == 2e-3 * 2 / 4
    assert result.settings["strides"] == [4, 8, 16, 32, 64]
    assert result.settings["epochs"] == 20


def test_a_batch_has_no_more_images_than_there_are(coco_data: Path) -> None:
    """The learning rate follows."""
    with dry_run(), pytest.raises(DryRunEnds) as ready:
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings({**TINY, "batch_size": 10**6}))
    num_images = ready.value.workload.data["training images"]
    assert ready.value.workload.settings["batch_size"] == num_images < 100


class Stop(Exception):
    pass


def test_a_stopped_evaluation_ends_as_one_that_was_not(
    coco_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "augmentation": "multi-scale", "drop_path": 0.2}
    whole = evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings(settings), Output(tmp_path / "whole"))
    monkeypatch.setattr("selfpatch.evaluation.detection.training.TrainingPlan", partial(TrainingPlan, save_every=0.0))

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 3):
            raise Stop

    with pytest.raises(Stop):
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings(settings), Output(tmp_path / "stopped", stop))
    seen: list[tuple[str, int]] = []
    resumed = evaluate(
        tiny_encoder(),
        coco_data,
        DetectionConfig.from_settings(settings),
        Output(tmp_path / "stopped", lambda what, done, _: seen.append((what, done))),
    )
    assert resumed.metrics == whole.metrics
    for file in (BOXES, MASKS):
        assert (tmp_path / "stopped" / file).read_text() == (tmp_path / "whole" / file).read_text()
    with pytest.raises(ValueError, match="a training with other settings"):
        evaluate(
            tiny_encoder(),
            coco_data,
            DetectionConfig.from_settings({**settings, "lr": 1.0}),
            Output(tmp_path / "stopped"),
        )


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
    assert 0 <= evaluate(tiny_encoder(), tmp_path, DetectionConfig.from_settings(settings)).metrics["box AP"] <= 1


def test_loader_processes_change_nothing(coco_data: Path) -> None:
    settings = {**TINY, "augmentation": "large-scale-jitter", "epochs": 1.0}
    here, there = (
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings({**settings, "workers": workers}))
        for workers in (0, 1)
    )
    assert here.metrics == there.metrics


def test_what_cannot_be_trained_is_told(coco_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a MeanColour cannot be fine-tuned"):
        evaluate(MeanColour(8), coco_data, DetectionConfig.from_settings(TINY))
    satellite = tiny_encoder(in_channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ValueError, match="takes images of 4 channels; detect needs one of RGB images"):
        evaluate(satellite, coco_data, DetectionConfig.from_settings(TINY))
    last_map = {**TINY, "pyramid": "last-map", "blocks": (1, 2, 3, 4)}
    with pytest.raises(ValueError, match="blocks are for pyramid inner-maps"):
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings(last_map))
    with pytest.raises(ValueError, match="precision is 'half'"):
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings({**TINY, "precision": "half"}))
    write_split(tmp_path, "train")
    write_split(tmp_path, "val")
    content = read_json(tmp_path, "val")
    content["categories"].append({"id": 91, "name": "star"})
    write_json(tmp_path, "val", content)
    with pytest.raises(ValueError, match=r"list other categories \(id 91 is in one only\)"):
        evaluate(tiny_encoder(), tmp_path, DetectionConfig.from_settings(TINY))


def test_a_missing_pycocotools_is_told(coco_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("selfpatch.evaluation.detection.masks.importlib.import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'selfpatch\[detect\]'"):
        evaluate(tiny_encoder(), coco_data, DetectionConfig.from_settings(TINY))


def test_bf16_is_a_precision(data: Path) -> None:
    assert (
        evaluate(tiny_encoder(), data, DetectionConfig.from_settings({**QUICK, "precision": "bf16"})).settings[
            "precision"
        ]
        == "bf16"
    )
    with pytest.raises(ValueError, match="precision is 'bfloat16'; use one of: float32, bf16"):
        evaluate(tiny_encoder(), data, DetectionConfig.from_settings({**QUICK, "precision": "bfloat16"}))


def test_predictions_are_kept_when_scoring_fails(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("scoring")

    monkeypatch.setattr("selfpatch.evaluation.detection.evaluate.average_precision", fails)
    with pytest.raises(RuntimeError, match="scoring"):
        evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK), Output(tmp_path / "out"))
    assert (tmp_path / "out" / BOXES).is_file()
    assert (tmp_path / "out" / MASKS).is_file()


def test_a_finished_training_is_scored_on_another_split_and_changed_labels_are_refused(
    data: Path, tmp_path: Path
) -> None:
    evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK), Output(tmp_path / "out"))
    moved = data.rename(tmp_path / "moved")
    told: list[str] = []
    result = evaluate(
        tiny_encoder(),
        moved,
        DetectionConfig.from_settings({**QUICK, "test_split": "train"}),
        Output(tmp_path / "out", lambda what, *_: told.append(what)),
    )
    assert set(told) == {"detecting"}
    assert result.settings["test_split"] == "train"
    change(moved, "train", category_id=7)
    with pytest.raises(ValueError, match=r"a training with other settings .training data"):
        evaluate(tiny_encoder(), moved, DetectionConfig.from_settings(QUICK), Output(tmp_path / "out"))


def test_the_identity_holds_what_training_depends_on_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []

    def spied(*arguments: Any, settings: Any, **others: Any) -> Any:
        handed.append(settings)
        return fit(*arguments, settings=settings, **others)

    monkeypatch.setattr("selfpatch.evaluation.detection.training.fit", spied)
    for settings in (QUICK, {**QUICK, "test_split": "train"}, {**QUICK, "limit": 3}, {**QUICK, "seed": 1}):
        evaluate(tiny_encoder(), data, DetectionConfig.from_settings(settings))
    assert handed[0] == handed[1] == handed[2] != handed[3]
    assert not {"preset", "data", "train_split", "test_split", "test_images"} & handed[0].keys()


def test_a_checkpoint_is_fine_tuned_with_another_number_of_heads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SelfPatch's released detection configuration does: 8 heads for a network trained with 6."""
    built: list[Any] = []

    def spied(*arguments: Any) -> Any:
        built.append(training.build_network(*arguments))
        return built[-1]

    monkeypatch.setattr("selfpatch.evaluation.detection.evaluate.build_network", spied)
    checkpoint = Path(__file__).parents[2] / "golden" / "mini" / "selfpatch" / "initial.pth"
    command = ["evaluate", "detect", "--weights", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "out")]
    for name, value in QUICK.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert main([*command, "--num-heads", "6"]) == 0
    (network,) = built
    assert {block.attn.num_heads for block in network.pyramid.backbone.trunk.blocks} == {6}
