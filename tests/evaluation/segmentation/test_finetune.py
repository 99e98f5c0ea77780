"""ImageNet-S' protocol: the network and a 1x1 convolution are trained together, against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from selfpatch.data.augment.multicrop import ViewRecipe, draw_view
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Output, Result, silent
from selfpatch.evaluation.segmentation import finetune
from selfpatch.evaluation.segmentation.augmentation import SIMCLR_COLOUR, SimCLRCrop
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, open_dataset
from selfpatch.evaluation.segmentation.decoder_config import FinetuneSegmentationConfig
from selfpatch.evaluation.segmentation.evaluate import evaluate
from selfpatch.evaluation.segmentation.finetune import PatchSegmenter, _classes, fit_network
from tests.helpers.labelled_images import tiny_encoder

COLOURS = np.array([[120, 120, 120], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)
SMALL: dict[str, Any] = {"method": "finetune", "preset": "small", "crop": 32, "short_side": 32, "batch_size": 3}


@pytest.fixture
def imagenet_s(tmp_path: Path) -> Path:
    """Three classes: a square of the class's colour on grey, the border void; masks hold the id in red and green."""
    rng = np.random.default_rng(0)
    for split, count in (("train-semi", 2), ("validation", 1)):
        for number, name in enumerate(("n01440764", "n01443537", "n01484850"), 1):
            for i in range(count):
                ids = np.zeros((40, 48), np.int64)
                ids[10:30, 6 + 8 * i : 40] = number
                ids[:2] = 1000
                pixels = COLOURS[np.where(ids == 1000, 0, ids)] + rng.integers(0, 30, (40, 48, 1), dtype=np.uint8)
                mask = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
                for folder, values, ending in ((split, pixels, "JPEG"), (f"{split}-segmentation", mask, "png")):
                    path = tmp_path / folder / name / f"{name}_{i}.{ending}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values).save(path)
    return tmp_path


def run(data: Path, encoder: Any = None, *, out: Path | None = None, progress: Any = None, **settings: Any) -> Result:
    config = SegmentationConfig.from_settings({**SMALL, **settings})
    return evaluate(encoder or tiny_encoder("vit"), data, config, Output(out, progress or silent))


@pytest.mark.slow
def test_it_learns_from_masks_in_two_channels(imagenet_s: Path) -> None:
    result = run(imagenet_s, epochs=60, lr=1.0, layer_decay=0.9, warmup_epochs=2, min_scale=0.9)
    assert result.settings["kind"] == "imagenet_s"
    assert (result.settings["classes"], result.settings["train_images"], result.settings["test_images"]) == (4, 6, 3)
    assert [row["class"] for row in result.rows] == ["other", "n01440764", "n01443537", "n01484850"]
    assert result.metrics["mIoU"] > 0.5 > result.metrics["mIoU baseline"]


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_every_network_is_tuned(imagenet_s: Path, kind: str) -> None:
    result = run(imagenet_s, tiny_encoder(kind), epochs=1, warmup_epochs=0, precision="bf16")
    assert 0 <= result.metrics["mIoU"] <= 1


class Stop(Exception):
    pass


def test_a_stopped_training_ends_as_one_that_was_not(
    imagenet_s: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = finetune.TrainingPlan
    monkeypatch.setattr(finetune, "TrainingPlan", lambda *args, **more: plan(*args, **more, save_every=0.0))
    settings = {"epochs": 3, "warmup_epochs": 1, "drop_path": 0.3}

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise Stop

    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = run(imagenet_s, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(imagenet_s, out=tmp_path / "stopped", progress=stop, **settings)
    assert torch.load(tmp_path / "stopped" / CHECKPOINT)["step"] == 3
    assert run(imagenet_s, out=tmp_path / "stopped", workers=1, **settings) == whole
    with pytest.raises(ValueError, match=r"other settings \(epochs 3 there, 4 now\)"):
        run(imagenet_s, out=tmp_path / "stopped", **{**settings, "epochs": 4})


def test_the_network_against_a_plain_loop() -> None:
    encoder = tiny_encoder("vit")
    network = PatchSegmenter(encoder.backbone, 5, seed=1).eval()
    images = torch.randn(1, 3, 21, 30)
    logits = network(images)
    assert logits.shape == (1, 5, 2, 3), "the last 5 and 6 pixels are cut off"
    patches = encoder.backbone(images[..., :16, :24]).raw_patches
    for row in range(2):
        for column in range(3):
            normed = F.layer_norm(patches[0, row, column], (16,), eps=1e-6)
            torch.testing.assert_close(
                logits[0, :, row, column], network.classify.weight @ normed + network.classify.bias
            )
    assert network.classify.weight.abs().max() < 1e-3
    assert 0.05 < network.classify.bias.abs().max() <= 0.25, "as torch initialises the bias of a convolution"
    again = PatchSegmenter(encoder.backbone, 5, seed=1)
    assert torch.equal(again.classify.weight, network.classify.weight)
    assert torch.equal(again.classify.bias, network.classify.bias)


def test_the_loss_is_that_of_the_released_code(imagenet_s: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits enlarged twofold, labels reduced to them (nearest), mean over the labelled pixels."""
    steps: list[Any] = []

    def fit(network: Any, loss: Any, batches: Any, optimizer: Any, plan: Any, **_: Any) -> None:
        steps.extend([network, loss, next(iter(batches.steps(0, 1))), optimizer, plan])

    monkeypatch.setattr(finetune, "fit", fit)
    encoder = tiny_encoder("vit")
    config = FinetuneSegmentationConfig.from_settings({**SMALL, "epochs": 10, "lr": 0.1, "drop_path": 0.0})
    fit_network(encoder, open_dataset(imagenet_s, "train"), config, Output())
    network, loss, batch, optimizer, plan = steps
    network.classify.weight.data.normal_()
    pixels, labels = batch
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    logits = F.interpolate(network((pixels / 255 - mean) / std), scale_factor=2, mode="bilinear")
    reduced = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0].long()
    assert (labels == IGNORE).any()
    torch.testing.assert_close(loss(batch), F.cross_entropy(logits, reduced, ignore_index=IGNORE))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert max(rates) == pytest.approx(0.1 * 3 / 256)
    assert min(rates) == pytest.approx(0.1 * 3 / 256 * 0.65**4)
    assert plan.steps == 20
    assert plan.lr(0) < plan.lr(3) == 1.0 > plan.lr(19)


def test_crops_cut_image_and_labels_alike() -> None:
    """Where a colour tells the label, it still does at the same place; colours are distorted in most crops."""
    label = np.zeros((40, 60), np.int64)
    label[10:, 20:], label[:5] = 300, IGNORE
    image = Image.fromarray(np.where(label[..., None] == 300, 255, 0).repeat(3, -1).astype(np.uint8))
    crop, changed, flips = SimCLRCrop(24, 0.5), 0, set()
    for seed in range(20):
        pixels, classes = crop(image, label, np.random.default_rng(seed))
        assert (pixels.shape, pixels.dtype, classes.shape, classes.dtype) == (
            (3, 24, 24), torch.uint8, (24, 24), torch.int64,
        )  # fmt: skip
        assert set(classes.unique().tolist()) <= {0, 300, IGNORE}
        white, black = pixels[:, classes == 300].float(), pixels[:, classes != 300].float()
        if white.numel() and black.numel():
            assert white.median() > black.median()
        changed += int(pixels.max() < 250)
        flips.add(bool((classes[-1, :4] == 300).all() and (classes[-1, -4:] == 0).all()))
    assert changed >= 5
    assert flips == {True, False}


def test_crops_are_resized_as_torchvision_does() -> None:
    """Bilinear pixels and nearest labels, where neither colours nor blur are drawn."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    label, compared = rng.integers(0, 900, (40, 60)), 0
    recipe = ViewRecipe(24, (0.14, 1.0), flip=0.5, blur=0.5, colour=SIMCLR_COLOUR)
    for seed in range(60):
        p = draw_view(recipe, image.size, np.random.default_rng(seed))
        if p.jitter is not None or p.grey or p.blur_radius:
            continue
        pixels, classes = SimCLRCrop(24, 0.14)(image, label, np.random.default_rng(seed))
        box = (p.top, p.left, p.height, p.width, [24, 24])
        expected = tvf.resized_crop(image, *box, InterpolationMode.BILINEAR)
        nearest = tvf.resized_crop(Image.fromarray(label.astype(np.int32)), *box, InterpolationMode.NEAREST)
        if p.flip:
            expected, nearest = tvf.hflip(expected), tvf.hflip(nearest)
        assert torch.equal(pixels, tvf.pil_to_tensor(expected))
        assert classes.tolist() == np.asarray(nearest).tolist()
        compared += 1
    assert compared > 2
    assert (SIMCLR_COLOUR.jitter, SIMCLR_COLOUR.grey, SIMCLR_COLOUR.blur_radius) == (0.8, 0.2, (0.1, 2.0))
    assert (SIMCLR_COLOUR.brightness, SIMCLR_COLOUR.contrast, SIMCLR_COLOUR.saturation) == (0.8, 0.8, 0.8)
    assert SIMCLR_COLOUR.hue == 0.2


def test_large_predictions_are_made_small_and_enlarged() -> None:
    """As the released `evaluate` does for more than max_res^2 pixels, upright and lying."""
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 3, 4)
    for size in ((30, 41), (41, 30), (20, 20), (31, 31)):
        height, width = size
        if height * width > 900:
            small = (30, int(30 * width / height)) if height > width else (int(30 * height / width), 30)
            classes = F.interpolate(logits, small, mode="bilinear").argmax(1, keepdim=True)
            expected = F.interpolate(classes.float(), size, mode="nearest").long()
        else:
            expected = F.interpolate(logits, size, mode="bilinear").argmax(1, keepdim=True)
        assert torch.equal(_classes(logits, size, 30), expected[0, 0])


def test_test_images_are_resized_and_seen_whole(imagenet_s: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(finetune, "fit", lambda network, *_, **__: seen.append(network))
    encoder = tiny_encoder("vit")
    config = FinetuneSegmentationConfig.from_settings({**SMALL, "short_side": 37})
    fitted = fit_network(encoder, open_dataset(imagenet_s, "train"), config, Output())
    seen[0].classify.weight.data.normal_()
    image = open_dataset(imagenet_s, "val").image(0)
    small = image.rgb.resize((int(37 * 48 / 40), 37), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    normal = (tvf.pil_to_tensor(small)[None] / 255 - mean) / std
    logits = seen[0](normal[..., :32, :40])
    assert torch.equal(fitted.predict(image), F.interpolate(logits, (40, 48), mode="bilinear").argmax(1)[0])


def test_what_does_not_fit_is_refused(imagenet_s: Path) -> None:
    with pytest.raises(ValueError, match="a MeanColour cannot be fine-tuned; give weights of a ViT"):
        run(imagenet_s, MeanColour(8))
    with pytest.raises(ValueError, match="crop is 30 and short_side 32 for patches of 8 pixels; use a multiple of 8"):
        run(imagenet_s, crop=30)
