"""Fine-tuning: it learns, and ends the same however it is stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.checkpoints.load import load_encoder
from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.classification.finetune import evaluate as finetune
from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.classification.finetune.evaluate import evaluate
from selfpatch.evaluation.classification.finetune.network import Classifier
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Output, Result, silent
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.heads import PrototypeHead, PrototypeHeadConfig
from selfpatch.models.pooling import ClassAttentionPool
from selfpatch.ops.images import normalise
from tests.helpers.labelled_images import NETWORKS, coloured_folder, tiny_encoder

SMALL: dict[str, Any] = {"resize": 16, "crop": 16, "epochs": 2, "batch_size": 6, "warmup_epochs": 0.5, "workers": 0}


def run(encoder: Encoder, data: Path, *, out: Path | None = None, progress: Any = None, **settings: Any) -> Result:
    return evaluate(encoder, data, FinetuneConfig.from_settings(settings), Output(out, progress or silent))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("token", ["image", "mean"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_is_tuned_and_the_encoder_stays(folder: Path, kind: str, token: Any) -> None:
    encoder = tiny_encoder(kind)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = run(encoder, folder, token=token, **SMALL)
    assert same(before, encoder.state_dict())
    assert set(result.metrics) == {"top-1", "top-5", "train top-1"}
    assert len(result.per_image) == 12


def test_running_statistics_of_a_resnet_follow_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Classifier] = []
    monkeypatch.setattr(finetune, "Classifier", lambda *a, **k: kept.append(Classifier(*a, **k)) or kept[-1])
    run(tiny_encoder("resnet"), folder, **SMALL)
    assert int(kept[0].state_dict()["backbone.trunk.bn1.num_batches_tracked"]) == 8
    assert not kept[0].training, "it was tested in evaluation mode"


real_plan = finetune.TrainingPlan


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if what == "training" and done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_stopped_training_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With all that is random: crops, RandAugment, erasing, mixup, cutmix, drop path."""
    monkeypatch.setattr(finetune, "TrainingPlan", lambda *args, **more: real_plan(*args, **more, save_every=0.0))
    settings = {**SMALL, "drop_path": 0.3, "erasing": 0.5}
    expected = run(tiny_encoder(kind), folder, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(tiny_encoder(kind), folder, out=tmp_path / "stopped", progress=stop_at(6), **settings)
    assert torch.load(tmp_path / "stopped" / CHECKPOINT)["step"] == 5
    assert run(tiny_encoder(kind), folder, out=tmp_path / "stopped", **settings) == expected
    whole, stopped = (torch.load(tmp_path / name / CHECKPOINT)["trained"] for name in ("whole", "stopped"))
    assert same(whole, stopped)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(mixup 0.8 there, 0.0 now\)"):
        run(tiny_encoder(kind), folder, out=tmp_path / "stopped", **settings, mixup=0.0)
    other = tiny_encoder(kind)
    next(other.parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        run(other, folder, out=tmp_path / "stopped", **settings)


def test_classes_that_differ_by_colour_are_learned(folder: Path) -> None:
    settings = {**SMALL, "epochs": 15, "warmup_epochs": 1, "lr": 0.1}
    result = run(tiny_encoder("vit"), folder, preset="small", labels="50%", per_class=True, **settings)
    assert result.metrics["train top-1"] == 1.0
    assert result.metrics["top-1"] == 1.0
    assert result.settings["train_images"] == 12
    assert [row["class"] for row in result.rows] == ["blue", "green", "red"]


def test_bfloat16(folder: Path) -> None:
    result = run(tiny_encoder("vit"), folder, precision="bf16", **SMALL)
    assert result.settings["precision"] == "bf16"


def test_published_settings() -> None:
    mae, ibot, cifar = (FinetuneConfig.from_settings({"preset": name}) for name in ("mae", "ibot", "cifar"))
    assert mae.lr * mae.batch_size / 256 == pytest.approx(2e-3)
    assert ibot.lr * ibot.batch_size / 256 == pytest.approx(4e-3)
    assert cifar.lr * cifar.batch_size / 256 == pytest.approx(7.5e-6 * 768 / 512)
    assert (mae.token, ibot.token, ibot.warmup_epochs) == ("mean", "image", 20)
    assert (mae.resampling, cifar.resampling, ibot.resampling) == ("bicubic", "bicubic", "bilinear")
    assert mae.weight_decay_on == ibot.weight_decay_on == "matrices_but_tokens"
    assert cifar.epochs == 1000
    assert FinetuneConfig.from_settings({"preset": "ibot_small"}).layer_decay == 0.75
    assert FinetuneConfig.from_settings({"preset": "sere_small"}).batch_size == mae.batch_size


def test_the_settings_of_released_command_lines() -> None:
    """eval_cls.py of iBOT: rates for a batch of 512, `--min-lr 1e-5`, `--warmup-epochs 5`, repeated augmentation."""
    released = {"flowers": 7.5e-6, "cars": 7.5e-5, "inaturalist": 7.5e-6, "inaturalist18_small": 5e-5,
                "inaturalist19_small": 2.5e-5, "cifar": 7.5e-6, "semi": 5e-6}  # fmt: skip
    for preset, lr in released.items():
        config = FinetuneConfig.from_settings({"preset": preset})
        assert config.lr == pytest.approx(lr / 2), preset
        assert config.batch_size == (1024 if preset == "semi" else 768)
        assert config.epochs == (360 if preset.startswith("inaturalist") else 1000)
        assert config.erasing == (0.1 if preset.startswith("inaturalist") else 0.25)
        assert (config.min_lr, config.warmup_epochs, config.weight_decay, config.drop_path) == (1e-5, 5, 0.05, 0.1)
        assert (config.mixup, config.cutmix, config.smoothing, config.rand_augment) == (0.8, 1.0, 0.1, 9)
        assert (config.layer_decay, config.head_std, config.repeats, config.token) == (1.0, 0.02, 3, "image")
        assert config.schedule == "epoch"
        assert config.weight_decay_on == "matrices", "the released network lists no names without decay"
        assert config.head_layers == (1 if preset == "semi" else 0)


def test_bad_settings_are_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="a MeanColour cannot be fine-tuned; give weights of a ViT, a Swin, a ResNet or a"
    ):
        run(MeanColour(8), folder, **SMALL)
    for settings, why in [
        ({"preset": "imagenet"}, "preset is 'imagenet'; use one of: mae, ibot"),
        ({"lr": 0.0}, "lr is 0.0; use a number above 0"),
        ({"warmup_epochs": 2}, "warmup_epochs is 2 of 2 epochs; use 0 or more, but fewer"),
        ({"drop_path": 1.5}, "drop_path is 1.5; use 1 or less"),
        ({"batch_size": 0}, "batch_size is 0; use a number above 0"),
        ({"encode_batch": 0}, "encode_batch is 0; use a number above 0"),
        ({"workers": -1}, "workers is -1; use 0 or more"),
        ({"mixup": -0.1}, "mixup is -0.1; use 0 or more"),
        ({"cutmix": -1.0}, "cutmix is -1.0; use 0 or more"),
        ({"weight_decay": -0.05}, "weight_decay is -0.05; use 0 or more"),
        ({"crop": 20, "resize": 20}, "crop is 20, no multiple of the patch size 8; use e.g. 16"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: float32, bf16"),
        ({"labels": "some"}, "labels is 'some', neither a share"),
    ]:
        with pytest.raises(ValueError, match=why):
            run(tiny_encoder("vit"), folder, **{**SMALL, **settings}, progress=never)


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} began before the settings were checked")


def test_the_capped_batch_size_is_recorded(folder: Path) -> None:
    settings = {**SMALL, "batch_size": 1000}
    assert run(tiny_encoder("vit"), folder, **settings).settings["batch_size"] == 24


def test_unreadable_test_images_are_counted_and_named(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path, train=2, test=2)
    (root / "val" / "red" / "red_1.png").write_bytes(b"no image")
    result = run(tiny_encoder("vit"), root, **SMALL)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (1, 5)
    assert result.notes == ["1 image could not be read, left out: val/red/red_1.png"]


def test_other_channels_go_without_rand_augment(folder: Path) -> None:
    three = tiny_encoder("vit+pool")
    shape = replace(three.backbone.config, in_channels=4, mean=(0.5,) * 4, std=(0.2,) * 4)
    encoder = BranchEncoder(build_backbone(shape), ClassAttentionPool(16, 2))
    with pytest.raises(ValueError, match="RandAugment is for 3 channels, not 4; set rand_augment to 0"):
        run(encoder, folder, **SMALL)


@pytest.mark.slow
def test_real_images_are_learned(data_dir: Path) -> None:
    """10 classes, 300 photographs of 32 x 32 pixels: a tiny network comes to know them better than by chance."""
    settings = {"resize": 32, "crop": 32, "lr": 0.05, "batch_size": 32, "epochs": 12, "workers": 0}
    result = run(tiny_encoder("vit"), data_dir / "cifar10_mini", preset="small", **settings)
    assert result.metrics["train top-1"] > 0.2
    assert result.metrics["top-1"] > 0.12


def test_few_labels_start_from_the_projection_head(folder: Path, tmp_path: Path) -> None:
    """Preset `semi` with a list of names; another head is another training, and weights without one are refused."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{name}_{i}.png\n" for name in ("blue", "green", "red") for i in range(2)))
    settings: dict[str, Any] = {**SMALL, "preset": "semi", "labels": str(listed), "out": tmp_path}
    encoder = tiny_encoder("vit")
    with pytest.raises(ValueError, match="the weights have none; give a full checkpoint"):
        run(encoder, folder, **settings)
    head = PrototypeHead(16, PrototypeHeadConfig(num_prototypes=8, hidden_dim=12, bottleneck_dim=6))
    encoder.projection = head.state_dict()
    result = run(encoder, folder, **settings)
    assert (result.settings["train_images"], result.settings["head_layers"]) == (6, 1)
    trained = torch.load(tmp_path / CHECKPOINT)["trained"]
    assert trained["head.mlp.0.weight"].shape == (12, 16)
    assert not torch.equal(trained["head.mlp.0.weight"], head.mlp[0].weight), "it is trained"
    encoder.projection["mlp.0.weight"].add_(1.0)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(projection"):
        run(encoder, folder, **settings)


@pytest.mark.parametrize("kind", ["vit", "vit+pool"])
def test_the_tuned_network_is_written_for_other_evaluations(folder: Path, tmp_path: Path, kind: str) -> None:
    encoder, images = tiny_encoder(kind), torch.randn(2, 3, 16, 16)
    run(encoder, folder, out=tmp_path, token="image", lr=0.01, **SMALL)
    trained = torch.load(tmp_path / CHECKPOINT)["trained"]
    tuned, report = load_encoder(str(tmp_path / "backbone.safetensors"))
    assert not report.left_out
    assert same(tuned.state_dict(), {name: tensor for name, tensor in trained.items() if not name.startswith("head.")})
    assert not torch.equal(tuned.image(images), encoder.image(images))


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_test_images_are_resized_as_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, resampling: str) -> None:
    seen: list[Tensor] = []

    class Watching(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            if not self.training:
                seen.append(images)
            return super().forward(images)

    monkeypatch.setattr(finetune, "Classifier", Watching)
    encoder = tiny_encoder("vit")
    run(encoder, folder, **{**SMALL, "resize": 18}, resampling=resampling)
    _, test = open_splits(folder)
    picture = test.read(0, 3)
    assert picture.size == (24, 20)
    small = picture.resize((int(18 * 24 / 20), 18), Image.Resampling[resampling.upper()])
    expected = normalise(tvf.center_crop(tvf.pil_to_tensor(small), [16, 16])[None], encoder.mean, encoder.std)
    torch.testing.assert_close(seen[0][:1], expected)


def test_learning_rates_change_by_step_or_by_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak 1, minimum 0.1, three epochs of four steps, the first for the warm-up."""
    plans: list[Any] = []
    monkeypatch.setattr(finetune, "fit", lambda *args, **_: plans.append(args[4]))
    settings = {**SMALL, "epochs": 3, "warmup_epochs": 1, "lr": 256 / 6, "min_lr": 0.1}
    for schedule in ("step", "epoch"):
        run(tiny_encoder("vit"), folder, schedule=schedule, **settings)
    by_step, by_epoch = (plan.lr for plan in plans)
    assert [by_step(step) for step in (0, 3, 4, 8)] == pytest.approx([0.25, 1.0, 1.0, 0.55])
    assert [by_epoch(step) for step in (0, 3, 4, 7, 8)] == pytest.approx([1e-6, 1e-6, 1e-6, 1e-6, 0.775])
