"""`selfpatch pretrain`: what a run prints and writes, and that others can read it."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import selfpatch
from selfpatch.api.short_runs import PHASES
from selfpatch.cli import parsing
from selfpatch.cli import pretrain as pretrain_command
from selfpatch.cli.main import main
from selfpatch.config.run import RunConfig
from tests.helpers.command_line import TINY

NUM_EPOCHS, NUM_STEPS = 2, 10  # 24 images, 2 of them held out, in batches of 4


def test_a_run_directory_holds_all_that_it_promises(run: Path) -> None:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert found - events == {
        "config.yaml", "data.json", "history.json", "images.npz", "metrics.jsonl", "report.html", "explore.html",
        "exported/backbone.safetensors",
        f"checkpoints/step-{NUM_STEPS:08d}.pt", "pictures/step-00000000.png", f"pictures/step-{NUM_STEPS:08d}.png",
        "pictures/before-and-after.png",
    }  # fmt: skip
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["epochs"], settings["dino"]["num_prototypes"], settings["crops"]["num_local"]) == (
        NUM_EPOCHS,
        64,
        2,
    )
    assert "data:image/png;base64," in (run / "report.html").read_text(), "its pictures travel with the page"


def test_metrics_of_every_step_and_of_both_ends(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, NUM_STEPS + 1))
    steps = {"loss", "image", "patch", "grad_norm", "lr", "teacher_momentum", "effective_rank", "images_per_second"}
    assert steps <= next(row for row in rows if "loss" in row).keys()
    measured = {row["step"]: row for row in rows if "view_matching" in row}
    assert list(measured) == [0, NUM_STEPS]
    assert all(0 <= row[name] <= 1 for row in measured.values() for name in ("view_matching", "knn_top1"))
    assert "view_matching_mean_colour" in measured[0]


def test_what_pretrain_says(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", str(out), "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    parts = [
        "22 images to train on, 2 held out", "recipe small-cpu: dino + selfpatch",
        "5 steps of 4 images, in 1 epoch of 5 steps",
        "note: shortened for 1 epoch in place of 26 epochs: warm-up of the learning rate from 2 to 0.077",
        "drawing patch features before and after training",
        "View matching: ", "mean patch colour", "untrained", "trained", "view matching", "k-NN top-1",
        f"picture    {out}/pictures/before-and-after.png", f"explore    {out}/explore.html",
        f"report     {out}/report.html",
        f"weights    {out}/exported/backbone.safetensors", f"selfpatch show --weights {out} {photos}",
    ]  # fmt: skip
    for part in parts:
        assert part in said
    assert 'href="explore.html"' in (out / "report.html").read_text()


def test_plain_timm_loads_what_was_exported(run: Path) -> None:
    state = {k: v for k, v in load_file(run / "exported" / "backbone.safetensors").items() if not k.startswith("pool.")}
    plain = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0,
        class_token=False, global_pool="", final_norm=False, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    plain.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.forward_features(images).transpose(1, 2).unflatten(2, (8, 8))
    for source in (run, run / "exported" / "backbone.safetensors"):
        encoder = selfpatch.load(str(source), device="cpu")
        torch.testing.assert_close(encoder.patches(images), expected)
        assert encoder.image(images).shape == (2, 24)


def test_settings_of_components_are_options_too(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["selfpatch"] == {"num_prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16, "head_norm": True}


def test_too_many_values_of_an_option_are_told_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--crops.global-size", "16", "32", "64"]) == 2
    assert "--crops.global-size: got 16 32 64; use INT or INT INT; `selfpatch" in capsys.readouterr().err


def test_settings_of_components_take_one_value_or_several() -> None:
    words = "--distill.losses patch_features image_features --crops.global-size 64 32 --neco.temp=10 --sere.k 2".split()
    assert pretrain_command._with_lists(words) == [
        "--distill.losses", "[patch_features, image_features]", "--crops.global-size", "64", "32", "--neco.temp=10",
        "--sere.k", "2",
    ]  # fmt: skip


def test_help_lists_the_settings_of_the_named_method_and_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--recipe", "small-cpu", "--objective", "distill+koleo", "--help"])
    page = capsys.readouterr().out
    assert all(
        option in page for option in ("--distill.queue-size INT", "--koleo.group-size", "--dino.num-prototypes INT")
    )
    assert "--distill.standardise {True,False}" in page


def test_options_of_sections_take_true_and_false_as_recipes_write_them() -> None:
    words = ["--backbone.rope", "true", "--out", "true", "--backbone.layer-scale=false", "--loader.fingerprint", "none"]
    assert parsing._python_words(words) == [
        "--backbone.rope", "True", "--out", "true", "--backbone.layer-scale=False", "--loader.fingerprint", "none",
    ]  # fmt: skip


def test_help_refuses_an_unknown_objective(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--objective", "distil", "--help"]) == 2
    assert "unknown objective 'distil'; use one of: distill" in capsys.readouterr().err


def test_warm_ups_that_the_command_names_stay(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    """Also where the recipe has the same length."""
    kept: list[set[str]] = []

    def fit_schedules(config: RunConfig, named: Container[str]) -> None:
        kept.append({name for name in PHASES if name in named})
        raise ValueError("seen")

    monkeypatch.setattr("selfpatch.api.pretrain.fit_schedules", fit_schedules)
    words = "--optimizer.warmup-epochs 2 --optimizer.freeze_last-layer_epochs=0 --optimizer.clip 1".split()
    assert main(["pretrain", *TINY, "--data", str(photos), "--epochs", "1", *words]) == 2
    assert main(["pretrain", *TINY, "--data", str(photos), "--epochs", "1"]) == 2
    assert kept == [{"warmup_epochs", "freeze_last_layer_epochs"}, set()]
