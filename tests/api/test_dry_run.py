"""Dry runs: what they report, that they read and write nothing, and that they refuse what a real run refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import selfpatch
from selfpatch.api.dry_run import DryRun, _dummy_views
from selfpatch.cli.main import main
from selfpatch.config.parsing import nested
from selfpatch.config.run import RunConfig
from selfpatch.data.sample_images import sample_index
from selfpatch.training.factory import make_loader, make_optimizer, make_student_teacher, open_training_data
from selfpatch.training.optim import Schedule
from tests.helpers.block_images import write_blocks
from tests.helpers.command_line import TINY, write_davis, write_photos
from tests.helpers.reproduction import write_spair
from tests.helpers.tiny import tiny_config

OPTIONS = nested((name.removeprefix("--"), value) for name, value in zip(TINY[::2], TINY[1::2], strict=True))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name in ("cat", "dog"):
        write_photos(folder / name, 12)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return selfpatch.pretrain(data=str(photos), out=str(tmp_path_factory.mktemp("runs") / "run"), epochs=0.2, **OPTIONS)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to open any image."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run reads no image")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr("selfpatch.data.loader.CropLoader.steps", refuse)
    for reader in ("read_image", "read_picture"):
        monkeypatch.setattr(f"selfpatch.data.decode.pillow.{reader}", refuse)


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("blind")
def test_pretraining_reads_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    report = selfpatch.pretrain(data=str(photos), out=str(tmp_path / "run"), epochs=2, dry_run=True, **OPTIONS)
    assert isinstance(report, DryRun)
    assert files_below(tmp_path) == before
    assert report.data == {
        "training images": 22, "held-out images": 2, "steps per epoch": 5, "steps": 10, "processes": 1,
        "images per forward pass": 4,
    }  # fmt: skip


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    ("options", "steps", "note"),
    [(["--minutes", "3"], 5, "that fit; "), (["--minutes=3", "--epochs", "2"], 10, "that fit, at most 2;")],
)
def test_a_time_limit_is_told_and_nothing_is_measured(
    options: list[str], steps: int, note: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", str(tmp_path / "run"), *options, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "minutes: 3.0" in said
    assert f"minutes is 3: a run measures the speed of its first steps and trains for the epochs {note}" in said
    assert f"│ steps │ {steps} │" in said


@pytest.mark.slow
def test_it_reports_what_the_run_records_and_trains(photos: Path, run: Path) -> None:
    """The settings are those of config.yaml, and parameters and optimizer those of the network that was trained."""
    out = run.parent / "other"
    report = selfpatch.pretrain(data=str(photos), out=str(out), epochs=0.2, dry_run=True, **OPTIONS)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load(yaml.safe_dump(dict(report.settings))) == recorded | {"out": str(out)}
    config = RunConfig().override(recorded)
    student_teacher, _ = make_student_teacher(config)
    assert sum(report.parameters.values()) == sum(p.numel() for p in student_teacher.parameters())
    tensors = {id(t): t for t in (*student_teacher.parameters(), *student_teacher.buffers())}.values()
    assert report.memory["parameters and buffers"] == sum(t.numel() * t.element_size() for t in tensors)
    trained = [p for p in student_teacher.parameters() if p.requires_grad]
    assert report.memory["gradients"] == 4 * sum(p.numel() for p in trained)
    assert report.memory["optimizer state"] == 2 * report.memory["gradients"], "AdamW keeps two moments"
    optimizer = make_optimizer(config, student_teacher)
    assert [group["tensors"] for group in report.groups] == [len(group["params"]) for group in optimizer.param_groups]
    assert sum(group["parameters"] for group in report.groups) == sum(p.numel() for p in trained)
    peak = Schedule(config.optimizer, 1, 10, config.batch_size).peak_lr
    assert {group["lr"] for group in report.groups} == {peak}


def test_flops_of_a_run_follow_its_views(photos: Path, tmp_path: Path) -> None:
    """Blocks of the backbone see 2 crops of 64 tokens and 2 of 16, in student and teacher; heads come on top."""
    report = selfpatch.pretrain(data=str(photos), out=str(tmp_path / "run"), epochs=1, dry_run=True, **OPTIONS)
    width, depth, patch = 24, 2, 4

    def backbone(tokens: int) -> int:
        products = 12 * tokens * width**2 + 2 * tokens**2 * width
        return 2 * (tokens * 3 * patch**2 * width + depth * products)

    assert report.flops["backbone, one image of 32 pixels"] == backbone(64)
    views = 2 * (2 * backbone(64) + 2 * backbone(16))
    assert views < report.flops["forward passes of an image's views"] < 3 * views
    assert report.flops["step"] > 4 * report.flops["forward passes of an image's views"] * 1.3
    assert report.flops["whole training"] == 5 * report.flops["step"]


@pytest.mark.slow
def test_processes_and_micro_batches_share_the_memory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"data": str(photos), "out": str(tmp_path / "run"), "epochs": 1, "dry_run": True, **OPTIONS}
    whole = selfpatch.pretrain(**how)
    split = selfpatch.pretrain(**how, accumulate=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    shared = selfpatch.pretrain(**how)
    assert [one.data["images per forward pass"] for one in (whole, split, shared)] == [4, 2, 1]
    assert whole.memory["activations"] > split.memory["activations"] > shared.memory["activations"]
    assert whole.memory["optimizer state"] == shared.memory["optimizer state"]
    assert shared.memory["buckets of gradients"] == shared.memory["gradients"]
    sharded = selfpatch.pretrain(**how, parallel="fsdp", activation_checkpointing=True)
    assert sharded.memory["optimizer state"] == shared.memory["optimizer state"] // 4
    assert sharded.memory["parameters and buffers"] < shared.memory["parameters and buffers"] / 3
    assert sharded.memory["activations"] < 0.9 * shared.memory["activations"]
    assert "With --parallel ddp, each of the 4 processes takes" in " ".join(sharded.notes)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="a batch of 4 images cannot be shared out over 3 processes"):
        selfpatch.pretrain(**how)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"crops": {"global_size": 30}},
        {"objective": "selfpatch", "selfpatch": {"k": 9}},
        {"model": "resnet50", "method": "ibot", "backbone": {"embed_dim": None, "depth": None, "num_heads": None}},
        {"batch_size": 64},
        {"loss_weights": {"nothing": 1.0}},
        {"init": "nowhere.pth"},
        {"data": "nowhere"},
        {"out": "{photos}"},
        {"out": "{photos}/cat/000.png"},
        {"out": "{photos}/runs/new"},
        {"out": "{run}"},
        {"device": "cuda:9"},
    ],
)
def test_what_a_run_refuses_is_refused_alike(change: dict[str, Any], photos: Path, run: Path, tmp_path: Path) -> None:
    config = (
        RunConfig().override(OPTIONS | {"recipe": None}).override({"data": str(photos), "out": str(tmp_path / "r")})
    )
    values = {
        key: value.format(photos=photos, run=run) if isinstance(value, str) else value for key, value in change.items()
    }
    sentences = []
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r".") as refused:
            selfpatch.pretrain(config.override(values), dry_run=dry_run)
        sentences.append(str(refused.value))
    assert sentences[0] == sentences[1]
    assert not (tmp_path / "r").exists()
    assert not (photos / "runs").exists()
    if "runs/new" in str(change):
        assert "lies inside the images" in sentences[0]


@pytest.mark.parametrize(
    "settings", [{}, {"method": "ibot", "channels": 2}, {"method": "moco_v2", "objective": "none"}]
)
def test_costs_are_those_of_what_the_loader_gives(settings: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**settings, data=str(write_photos(tmp_path / "photos", 8)), loader={"workers": 0})
    if config.channels == 2:
        for path in (tmp_path / "photos").iterdir():
            Image.open(path).convert("LA").save(path)
    student_teacher, _ = make_student_teacher(config)
    device = torch.device("cpu")
    loader = make_loader(config, student_teacher, open_training_data(config), device)
    (batch,) = next(iter(loader.steps(0, 1)))
    loaded, dummy = batch.to("cpu").tensors(), _dummy_views(config, student_teacher, 4).tensors()
    shapes = [{name: (t.shape, t.dtype) for name, t in views.items()} for views in (dummy, loaded)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("prototypes", ["shared", "untied"])
def test_sinkhorn_over_masked_patches_has_a_dry_run(prototypes: str, photos: Path, tmp_path: Path) -> None:
    config = tiny_config(method="ibot", objective="koleo", data=str(photos), out=str(tmp_path / "run"))
    config = config.override({"ibot": {"centering": "sinkhorn", "prototypes": prototypes}})
    report = selfpatch.pretrain(config, dry_run=True)
    assert report.memory["activations"] > 0


@pytest.mark.slow
def test_the_samples_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted, and made by the real run."""
    dry = selfpatch.pretrain(dry_run=True, out=str(tmp_path / "run"))
    assert not files_below(tmp_path)
    assert (dry.data["training images"], dry.data["held-out images"]) == (
        len(sample_index("training")), len(sample_index("held_out")),
    )  # fmt: skip


def test_init_is_read_as_far_as_its_shapes(photos: Path, run: Path, tmp_path: Path) -> None:
    how = {"data": str(photos), "out": str(tmp_path / "other"), "epochs": 1, "dry_run": True, "init": str(run)}
    report = selfpatch.pretrain(**(OPTIONS | how))
    assert report.settings["init"] == str(run)
    backbone = OPTIONS["backbone"] | {"depth": 3}
    with pytest.raises(ValueError, match="missing"):
        selfpatch.pretrain(**(OPTIONS | how | {"backbone": backbone}))


@pytest.mark.slow
@pytest.mark.usefixtures("blind")
def test_an_evaluation_reads_and_writes_nothing(run: Path, photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(photos)
    before = files_below(tmp_path)
    out, data = tmp_path / "out", tmp_path / "data"
    report = selfpatch.evaluate("knn", str(run), data, out=out, dry_run=True, resize=48, crop=32, ks=[1, 30])
    assert files_below(tmp_path) == before
    assert (report.settings["ks"], report.data) == ([1], {"training images": 24, "test images": 24, "classes": 2})
    assert report.flops["encoding all images"] == 48 * report.flops["forward pass of one image"]
    other = selfpatch.evaluate("knn", str(run), data, dry_run=True, resize=48, crop=32, ks=[1], precision="bf16")
    assert (report.precision, other.precision) == ("fp32", "bf16")
    assert other.memory["activations"] != report.memory["activations"], "the pass itself is measured in bf16"
    tuned = selfpatch.evaluate("finetune", str(run), data, dry_run=True, preset="small", resize=48, crop=32, epochs=4)
    assert tuned.memory["gradients"] * 2 == tuned.memory["optimizer state"]
    assert tuned.flops["whole training"] == 4 * tuned.flops["training step"], "one batch of all images an epoch"


def test_an_evaluation_records_the_settings_of_the_report(run: Path, tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis")
    report = selfpatch.evaluate("davis", str(run), davis, dry_run=True, resolution=48)
    result = selfpatch.evaluate("davis", str(run), davis, resolution=48)
    recorded = {name: value for name, value in report.settings.items() if name in result.settings}
    assert recorded == {name: result.settings[name] for name in recorded}
    assert {"resolution", "sequences", "block"} <= recorded.keys()
    assert report.parameters["encoder"] == sum(p.numel() for p in selfpatch.load(run, device="cpu").parameters())


def test_weights_of_timm_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    davis = write_davis(tmp_path / "davis")
    report = selfpatch.evaluate("davis", "timm:vit_small_patch16_224.dino", davis, dry_run=True)
    assert report.parameters == {"encoder": 21_665_664}
    assert not (tmp_path / "hub").exists()


def test_functions_and_baselines_have_dry_runs_too(tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis")
    for weights, how in [(torch.nn.AvgPool2d(8), {"patch_size": 8}), ("baseline:mean-colour:8", {})]:
        report = selfpatch.evaluate("davis", weights, davis, dry_run=True, device="cpu", resolution=48, **how)
        assert report.data == {"sequences": 2, "frames": 8}
    assert selfpatch.evaluate("davis", "baseline:first-mask", davis, dry_run=True).flops == {}


def test_cached_features_have_dry_runs(run: Path, tmp_path: Path) -> None:
    """A dry run encodes images without values, which no cache could look up."""
    write_spair(tmp_path)
    assert selfpatch.evaluate("correspond", str(run), tmp_path, dry_run=True, resolution=32).flops


@pytest.mark.parametrize("kind", ["function", "baseline", "network"])
@pytest.mark.parametrize("name", ["linear", "segment"])
def test_heads_on_any_encoder_have_dry_runs(name: str, kind: str, run: Path, photos: Path, tmp_path: Path) -> None:
    """Baselines, functions and open networks have values; the heads on them have none."""
    network = selfpatch.load(run, device="cpu")
    weights = {"function": torch.nn.Conv2d(3, 4, 8, 8), "baseline": "baseline:mean-colour:8", "network": network}[kind]
    settings: dict[str, Any] = {"crop": 32, "batch_size": 2} | ({"patch_size": 8} if kind == "function" else {})
    if name == "linear":
        data, settings = tmp_path / "data", settings | {"resize": 32}
        for split in ("train", "val"):
            shutil.copytree(photos, data / split)
    else:
        data, settings = write_blocks(tmp_path / "data"), settings | {"method": "linear"}
    report = selfpatch.evaluate(name, weights, data, device="cpu", dry_run=True, **settings)
    assert report.parameters["trained"] > 0
    assert report.flops["whole training"] > 0
    assert next(network.parameters()).device.type == "cpu"


def test_a_dry_run_counts_the_clusters(tmp_path: Path) -> None:
    data = write_blocks(tmp_path / "data")
    with pytest.raises(ValueError, match="num_clusters is 5 for 3 classes"):
        selfpatch.evaluate("segment", "baseline:mean-colour:8", data, dry_run=True, method="kmeans", num_clusters=5)


def test_the_command_prints_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    davis = write_davis(tmp_path / "davis")
    words = ["evaluate", "davis", "--weights", str(run), "--data", str(davis), "--resolution", "48", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in ("resolution: 48", "sequences", "encoding all images", "FLOP", "Nothing was written."):
        assert part in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 0
    assert capsys.readouterr().out == "", "the main process alone prints"
    assert main([*words[:-1], "--radius", "-1", "--dry-run"]) == 2


def test_the_command_counts_images_without_caching_them(photos: Path, tmp_path: Path) -> None:
    for folder in (photos, *photos.iterdir()):
        os.utime(folder, (1, 1))  # folders that change are not cached
    words = ["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), "--device", "cuda:99"]
    for spelling in ("--dry-run", "--dry_run"):
        assert main([*words, spelling]) == 2
        assert files_below(tmp_path) == set()
    assert main(words) == 2
    assert files_below(tmp_path / "cache"), "a real run does"


@pytest.mark.slow
def test_real_runs_work_after_dry_ones(photos: Path, tmp_path: Path) -> None:
    """Constants that a dry run was the first to need are real."""
    how = {"data": str(photos), "epochs": 0.2, **OPTIONS}
    how["crops"] = OPTIONS["crops"] | {"global_size": 28, "local_size": 20}
    selfpatch.pretrain(**how, out=str(tmp_path / "run"), dry_run=True)
    assert (selfpatch.pretrain(**how, out=str(tmp_path / "run")) / "report.html").is_file()
