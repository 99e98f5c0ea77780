"""Two processes train and score a detector with the numbers of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from selfpatch.api.evaluate import evaluate
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Result
from tests.end_to_end.test_evaluation_processes import same_training
from tests.helpers.detect_data import QUICK, tiny_encoder, write_split
from tests.helpers.workers import WorkerPool

pytest.importorskip("pycocotools.coco")
SETTINGS: dict[str, Any] = {
    **QUICK, "heads": "convolutional", "box_norm": "batch", "mask_norm": "batch", "pyramid_norm": "batch",
    "augmentation": "multi-scale", "negatives": True, "batch_size": 4, "epochs": 2.0, "warmup_steps": 0, "lr": 1e-5,
    "max_pictures": 2,
}  # fmt: skip


def measure(rank: int, model: str, data: str, out: str, settings: dict[str, Any]) -> Result:
    return evaluate("detect", tiny_encoder(model), data, out=out, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("vit_tiny", {"drop_path": 0.2}),
        ("vit_tiny", {"detector": "cascade", "box_loss": "giou", "rpn_loss": "smooth-l1", "anchors_inside": True}),
        ("resnet50", {"optimizer": "sgd", "train_batch_norms": True, "weight_decay": 1e-4}),
    ],
)
def test_detect(pool: WorkerPool, tmp_path: Path, model: str, settings: dict[str, Any]) -> None:
    """Images of a batch differ in size, and so do the numbers of their objects.

    Rounding makes weights differ and changes ranks of equal scores, so that both score the same weights.
    """
    write_split(tmp_path / "data", "train", images=5)
    data = write_split(tmp_path / "data", "val", images=3, seed=1)
    one = measure(0, model, str(data), str(tmp_path / "one"), {**SETTINGS, **settings})
    pool.run(measure, model, str(data), str(tmp_path / "two"), {**SETTINGS, **settings})
    same_training(tmp_path)
    (tmp_path / "scored").mkdir()
    shutil.copy(tmp_path / "one" / CHECKPOINT, tmp_path / "scored")
    for result in pool.run(measure, model, str(data), str(tmp_path / "scored"), {**SETTINGS, **settings}):
        assert result.metrics == pytest.approx(one.metrics, abs=1e-6)
        assert result.per_image == one.per_image
        assert result.rows == one.rows
        assert (result.settings, result.pictures) == (one.settings, one.pictures)
