"""The preset `hummingbird` against a plain program of open-hummingbird-eval's steps, without its random crops."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour
from selfpatch.evaluation.segmentation.config import KNNSegmentationConfig, SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import open_dataset
from selfpatch.evaluation.segmentation.evaluate import evaluate

SIDE, PATCH, CLASSES, K = 24, 8, 3, 4
STD = (0.229, 0.224, 0.255)


def pooled(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, PATCH)


ENCODER = FunctionEncoder(pooled, PATCH)


def hummingbird_reference(data: Path, memory_per_image: int | None = None) -> dict[str, float]:
    def load(split: str, i: int) -> tuple[Tensor, Tensor]:
        image = Image.open(data / "images" / split / f"{i}.png").convert("RGB").resize((SIDE, SIDE), 2)
        label = torch.from_numpy(np.array(Image.open(data / "labels" / split / f"{i}.png")))
        label = F.interpolate(label[None, None].float(), (SIDE, SIDE), mode="nearest")[0, 0].long()
        pixels = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        return pooled(((pixels - mean) / torch.tensor(STD).view(3, 1, 1))[None])[0], label

    keys, values = [], []
    for i in range(4):
        features, label = load("train", i)
        label[label == 255] = 0
        for y in range(SIDE // PATCH):
            for x in range(SIDE // PATCH):
                patch = label[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
                keys.append(features[:, y, x])
                values.append(torch.tensor([(patch == c).float().mean() for c in range(CLASSES)]))
    truths, predictions = [], []
    for i in range(3):
        features, label = load("val", i)
        votes = torch.zeros(CLASSES, SIDE // PATCH, SIDE // PATCH)
        for y in range(SIDE // PATCH):
            for x in range(SIDE // PATCH):
                cosine = torch.stack([torch.cosine_similarity(features[:, y, x], key, dim=0) for key in keys])
                nearest = cosine.argsort(descending=True)[:K]
                weights = (cosine[nearest] / 0.02).softmax(0)
                votes[:, y, x] = sum(w * values[int(j)] for w, j in zip(weights, nearest, strict=True))
        predictions.append(F.interpolate(votes[None], (SIDE, SIDE), mode="bilinear")[0].argmax(0))
        truths.append(label)
    truth, prediction = torch.stack(truths), torch.stack(predictions)
    prediction[truth == 255] = 255

    def iou(c: int, predicted: int) -> float:
        both, either = (truth == c) & (prediction == predicted), (truth == c) | (prediction == predicted)
        return float(both.sum() / either.sum()) if either.any() else 0.0

    best = max(permutations(range(CLASSES)), key=lambda order: sum(iou(c, p) for c, p in enumerate(order)))
    return {
        "mIoU": float(np.mean([iou(c, p) for c, p in enumerate(best)])),
        "mIoU unmatched": float(np.mean([iou(c, c) for c in range(CLASSES)])),
    }


def run(data: Path, **settings: Any) -> dict[str, float]:
    small = {"method": "knn", "preset": "hummingbird", "resolution": SIDE + 5, "k": K, "augment": False, "passes": 1}
    result = evaluate(ENCODER, data, SegmentationConfig.from_settings({**small, **settings}))
    return {name: result.metrics[name] for name in ("mIoU", "mIoU unmatched") if name in result.metrics}


def test_the_preset_equals_a_plain_program(noise: Path) -> None:
    expected = hummingbird_reference(noise)
    assert run(noise) == pytest.approx(expected, abs=1e-6)
    assert expected["mIoU"] > expected["mIoU unmatched"]


@pytest.mark.parametrize(
    "mistake",
    [{"std": "encoder"}, {"void_as_background": False}, {"shape": "whole"}, {"temperature": 0.5}, {"k": K + 1}],
    ids=str,
)
def test_a_planted_mistake_is_noticed(noise: Path, mistake: dict[str, Any]) -> None:
    assert run(noise, **mistake) != pytest.approx(hummingbird_reference(noise), abs=1e-6)


def test_the_settings_are_those_of_open_hummingbird_eval() -> None:
    config = SegmentationConfig.from_settings({"method": "knn", "preset": "hummingbird"})
    assert isinstance(config, KNNSegmentationConfig)
    assert (config.resolution, config.k, config.temperature, config.memory_patches) == (512, 30, 0.02, 10_240_000)
    assert (config.passes, config.augment, config.shape, config.mask_side) == (2, True, "square", None)
    assert (config.void_as_background, config.hungarian, config.absent_as_zero, config.std) == (
        *[True] * 3,
        "released",
    )


def test_passes_share_the_memory_and_draw_other_crops(noise: Path) -> None:
    def remembered(**settings: Any) -> Any:
        values = {"method": "knn", "preset": "hummingbird", "resolution": SIDE, "k": K, **settings}
        return evaluate(ENCODER, noise, SegmentationConfig.from_settings(values))

    twice = remembered()
    assert twice.settings["remembered"] == 2 * 4 * (SIDE // PATCH) ** 2
    assert remembered() == twice
    assert remembered(seed=1).metrics != twice.metrics
    assert remembered(memory_patches=17).settings["remembered"] == 16
    with pytest.raises(ValueError, match="memory_patches is 7 for 4 training images in 2 passes; use one per image"):
        remembered(memory_patches=7)


def test_void_of_ade20k_is_a_class_that_is_never_right(tmp_path: Path) -> None:
    for folder in ("images/training", "annotations/training"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 1)).save(tmp_path / "images/training/a.png")
    Image.fromarray(np.array([[0, 1, 150, 1]], np.uint8)).save(tmp_path / "annotations/training/a.png")
    ade = open_dataset(tmp_path, "train")
    remembered, scored = ade.with_void_class(labelled=True), ade.with_void_class(labelled=False)
    assert len(remembered.classes) == len(scored.classes) == 151
    assert remembered.classes[:2] == ("(void)", "wall")
    assert remembered.read(0)[1].tolist() == [[0, 1, 150, 1]]
    assert scored.read(0)[1].tolist() == [[255, 1, 150, 1]]
    full = replace(ade, classes=tuple(map(str, range(255))))
    with pytest.raises(ValueError, match="makes 256 classes, of which 255 are possible"):
        full.with_void_class(labelled=True)


def test_settings_that_do_not_fit_are_refused(noise: Path) -> None:
    with pytest.raises(ValueError, match="augment is True, but its crops are square; set shape to square too"):
        SegmentationConfig.from_settings({"method": "knn", "augment": True})
    with pytest.raises(ValueError, match="mask_side is 9, but whole images are scored at the size of their labels"):
        SegmentationConfig.from_settings({"method": "logistic", "mask_side": 9})
    with pytest.raises(ValueError, match="resolution is 7 pixels for patches of 8; use more"):
        run(noise, resolution=7)


@pytest.mark.parametrize("method", ["knn", "logistic", "kmeans"])
def test_square_images_are_scored_at_their_side(noise: Path, method: str) -> None:
    settings = {"method": method, "shape": "square", "resolution": SIDE}
    results = [
        evaluate(MeanColour(PATCH), noise, SegmentationConfig.from_settings({**settings, "mask_side": side}))
        for side in (None, SIDE, 5)
    ]
    assert results[0].metrics == results[1].metrics != results[2].metrics
