"""The commands end to end, each in seconds: what they print, what they write, and that others can read it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import selfpatch
from selfpatch.cli.main import main
from selfpatch.config.parsing import nested
from tests.helpers.command_line import TINY, differences, write_davis, write_photos

EPOCHS, STEPS = 2, 10  # 24 images, 2 of them held out, in batches of 4


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name in ("cat", "dog"):
        write_photos(folder / name, 12)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", str(out), "--epochs", str(EPOCHS)]) == 0
    return out


def test_a_run_directory_holds_all_that_it_promises(run: Path) -> None:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert found - events == {
        "config.yaml", "data.json", "metrics.jsonl", "report.html", "exported/backbone.safetensors",
        f"checkpoints/step-{STEPS:08d}.pt", "pictures/step-00000000.png", f"pictures/step-{STEPS:08d}.png",
        "pictures/before-and-after.png",
    }  # fmt: skip
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["epochs"], settings["dino"]["num_prototypes"], settings["crops"]["num_local"]) == (EPOCHS, 64, 2)
    assert "data:image/png;base64," in (run / "report.html").read_text(), "its pictures travel with the page"


def test_metrics_of_every_step_and_of_both_ends(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    steps = {"loss", "image", "patch", "grad_norm", "lr", "teacher_momentum", "effective_rank", "images_per_second"}
    assert steps <= next(row for row in rows if "loss" in row).keys()
    measured = {row["step"]: row for row in rows if "view_matching" in row}
    assert list(measured) == [0, STEPS]
    assert all(0 <= row[name] <= 1 for row in measured.values() for name in ("view_matching", "knn_top1"))
    assert "view_matching_mean_colour" in measured[0]


def test_what_pretrain_says(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", str(out), "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    parts = [
        "22 images to train on, 2 held out", "recipe samples: dino + selfpatch", "batch 4, 5 steps an epoch",
        "mean patch colour", "untrained", "trained", "patches matched across views", "k-NN top-1",
        f"picture    {out}/pictures/before-and-after.png", f"report     {out}/report.html",
        f"weights    {out}/exported/backbone.safetensors", f"selfpatch show --weights {out} {photos}",
    ]  # fmt: skip
    for part in parts:
        assert part in said


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


def test_resuming_a_finished_run_changes_nothing(run: Path) -> None:
    kept = [run / "metrics.jsonl", run / "config.yaml", *run.glob("checkpoints/*")]
    before, weights = [path.read_bytes() for path in kept], load_file(run / "exported" / "backbone.safetensors")
    assert main(["resume", str(run)]) == 0
    assert [path.read_bytes() for path in kept] == before
    assert differences(load_file(run / "exported" / "backbone.safetensors"), weights) == []


def test_davis(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    assert main(f"evaluate davis --weights {run} --data {davis} --out {out} --resolution 48 --device cpu".split()) == 0
    assert "J&F-Mean" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [(row["sequence"], row["object"]) for row in result["rows"]] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2),
    ]  # fmt: skip
    assert result["weights"]["source"] == str(run)
    assert result["settings"]["resolution"] == 48
    for name in ("first", "second"):
        assert sorted(path.name for path in (out / "results" / name).iterdir()) == [f"{i:05d}.png" for i in range(4)]
        assert Image.open(out / "results" / name / "00003.png").size == (64, 48)
        assert (out / "pictures" / f"{name}.jpg").is_file()

    again = tmp_path / "again"
    assert main(f"evaluate davis --results {out / 'results'} --data {davis} --out {again}".split()) == 0
    assert json.loads((again / "result.json").read_text())["metrics"] == result["metrics"]


def test_the_truth_scores_one(tmp_path: Path) -> None:
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    truth = davis / "Annotations" / "480p"
    assert main(f"evaluate davis --results {truth} --data {davis} --out {out}".split()) == 0
    assert json.loads((out / "result.json").read_text())["metrics"]["J&F-Mean"] == 1


def test_knn(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for split in ("train", "val"):  # the same images, so that each one's nearest neighbour is itself
        (data / split).symlink_to(photos)
    sizes = "--resize 48 --crop 32 --ks 1 3 100 --device cpu"
    assert main(f"evaluate knn --weights {run} --data {data} --out {out} {sizes}".split()) == 0
    assert "top-1" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert (result["settings"]["ks"], result["settings"]["classes"]) == ([1, 3], 2)
    assert result["metrics"].keys() == {"top-1 k=1", "top-5 k=1", "top-1 k=3", "top-5 k=3"}


def test_a_suite(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    """One evaluation succeeds and one fails; the second time only what failed is run again."""
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    lines = [f"- davis: {{data: {davis}, resolution: 48}}", "- knn: {data: nowhere}"]
    (tmp_path / "suite.yaml").write_text("\n".join(lines))
    command = f"evaluate all --suite {tmp_path}/suite.yaml --weights {run} --out {out} --device cpu".split()
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "J&F-Mean" in shown.out
    assert "selfpatch: 2-knn: nowhere has no train/" in shown.err
    result = json.loads((out / "1-davis" / "result.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", result["weights"]["sha256"])
    assert result["device"]
    assert result["costs"].keys() == {"seconds", "frames/s"}
    assert "| 1-davis | J&F-Mean |" in (out / "report.md").read_text()
    assert main(command) == 2
    assert "1. davis on" in (again := capsys.readouterr().out)
    assert "was done before" in again
    assert json.loads((out / "1-davis" / "result.json").read_text()) == result
    (tmp_path / "suite.yaml").write_text(lines[0])
    assert main(command) == 0
    outcomes = selfpatch.evaluate_suite(tmp_path / "suite.yaml", str(run), out, device="cpu")
    assert [outcome.was_done for outcome in outcomes] == [True]
    assert main([*command, "--side", "student"]) == 2
    assert "holds another result (weights.side is teacher there and student now)" in capsys.readouterr().err


def test_a_suite_finds_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_davis(Path("davis"))
    Path("every-one.yaml").write_text("- davis: {data: davis, resolution: 48}")
    (outcome,) = selfpatch.evaluate_suite("every-one.yaml", "baseline:mean-colour:8")
    assert outcome.result is not None
    assert Path("evaluations/every-one-baseline-mean-colour-8/report.html").is_file()
    (again,) = selfpatch.evaluate_suite("every-one.yaml", "baseline:mean-colour:8")
    assert again.was_done
    with pytest.raises(ValueError, match=r"weights\.source is baseline:mean-colour:8 there"):
        selfpatch.evaluate_suite("every-one.yaml", "baseline:raw-patch:8", next(Path("evaluations").iterdir()))


def test_results_side_by_side(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis")
    for weights, out in [(run, "a"), ("baseline:mean-colour:8", "b")]:
        options = f"--data {davis} --out {tmp_path / out} --resolution 48 --device cpu"
        assert main(f"evaluate davis --weights {weights} {options}".split()) == 0
    files = [str(tmp_path / name / "result.json") for name in "ab"]
    capsys.readouterr()
    assert main(["evaluate", "--compare", *files]) == 0
    shown = capsys.readouterr().out
    assert "baseline:mean-colour:8" in shown.replace("\n", "")
    assert "J-Mean, mean of 2" in shown
    assert selfpatch.compare(files).columns == [str(run), "baseline:mean-colour:8"]
    assert main(f"evaluate davis --results {tmp_path}/a/results --data {davis} --out {tmp_path}/c".split()) == 0
    other = [*files, str(tmp_path / "c" / "result.json")]
    assert main(["evaluate", "--compare", *other]) == 2
    assert "resolution is 48 in result 1 and not given in result 3; allow it with --all" in capsys.readouterr().err
    assert main(["evaluate", "--compare", *other, "--allow-different"]) == 0


def test_a_function_is_evaluated(tmp_path: Path) -> None:
    davis, settings = write_davis(tmp_path / "davis"), {"resolution": 48, "device": "cpu"}
    how = {"patch_size": 8, "load_options": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}}
    pool = torch.nn.AvgPool2d(8)
    result = selfpatch.evaluate("davis", pool, davis, **how, **settings)
    assert result.metrics == selfpatch.evaluate("davis", "baseline:mean-colour:8", davis, **settings).metrics
    with pytest.raises(ValueError, match=r"function of images; say how large its patches are, e\.g\. patch_size=16"):
        selfpatch.evaluate("davis", pool, davis)
    with pytest.raises(ValueError, match="patch_size is 8, but only a function of images needs one"):
        selfpatch.evaluate("davis", "baseline:mean-colour:8", davis, patch_size=8)


def test_show(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, tmp_path: Path) -> None:
    images = [photos / "cat" / "000.png", photos / "dog" / "000.png"]
    where = f"--out {tmp_path} --resolution 48 --window all --border clip --device cpu"
    assert main(f"show --weights {run} {images[0]} {images[1]} {where}".split()) == 0
    written = [tmp_path / "000.png", tmp_path / "000-2.png"]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(path) for path in written]
    for path in written:
        assert min(Image.open(path).size) > 100


def test_export(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 0
    shown = capsys.readouterr().out
    assert f"{out}/model.safetensors" in shown
    assert f"local-dir:{out}" in shown
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 2
    assert "is no empty folder; name another one with --out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no export to 'tf'; use one of timm, safetensors, hf, onnx"):
        selfpatch.export(str(run), "tf", tmp_path / "other")


def test_the_python_face(photos: Path, tmp_path: Path) -> None:
    options = [(name.removeprefix("--"), value) for name, value in zip(TINY[::2], TINY[1::2], strict=True)]
    settings = nested(options)
    settings["selfpatch"] |= {"k": 2}
    run = selfpatch.pretrain(data=str(photos), out=str(tmp_path / "run"), epochs=1, **settings)
    assert run == tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["selfpatch"]["k"] == 2
    assert selfpatch.resume(run) == run

    encoder = selfpatch.load(str(run), device="cpu")
    davis = write_davis(tmp_path / "davis")
    results = [
        selfpatch.evaluate("davis", weights, data=davis, resolution=48, sequences=["second"])
        for weights in (encoder, str(run))
    ]
    assert results[0].metrics == results[1].metrics
    assert (results[0].weights, results[1].weights.source) == (None, str(run))
    assert selfpatch.show(encoder, [photos / "cat" / "000.png"], tmp_path / "pictures", resolution=48)[0].is_file()
    with pytest.raises(ValueError, match=r"epochs is 0; use a number above 0"):
        selfpatch.pretrain(data=str(photos), out=str(tmp_path / "none"), **(settings | {"epochs": 0}))
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        selfpatch.fly  # noqa: B018


NETWORK = "weights side num-heads position-embedding allow-partial device"
OPTIONS = {
    "pretrain": """
        data out channels recipe method objective model patch-size init allow-partial epochs batch-size accumulate seed
        device precision compile loss-weights
        backbone.embed-dim backbone.depth backbone.depths backbone.num-heads backbone.drop-path
        backbone.position-embedding backbone.positions backbone.freeze-patch-embed backbone.frozen-blocks
        backbone.keep-class-token
        crops.global-size crops.global-scale crops.num-local crops.local-size crops.local-scale crops.flip crops.jitter
        crops.brightness crops.contrast crops.saturation crops.hue crops.grey crops.blur crops.blur-radius
        crops.solarize
        masks.kind masks.ratio masks.share-unmasked
        optimizer.name optimizer.momentum optimizer.base-lr optimizer.min-lr optimizer.warmup-epochs
        optimizer.weight-decay optimizer.weight-decay-end
        optimizer.weight-decay-on optimizer.layer-decay optimizer.clip optimizer.clip-mode
        optimizer.freeze-last-layer-epochs optimizer.freeze-backbone-epochs optimizer.teacher-momentum
        optimizer.teacher-momentum-end optimizer.teacher-moves
        optimizer.teacher-temp optimizer.warmup-teacher-temp optimizer.teacher-patch-temp
        optimizer.warmup-teacher-patch-temp optimizer.warmup-teacher-temp-epochs
        loader.workers loader.render loader.max-pixels loader.max-bad loader.held-out
        watch.log-every watch.evaluate-every watch.knn-images watch.picture-images
        checkpoint.every-minutes checkpoint.every-steps checkpoint.keep checkpoint.keep-every-epochs
        checkpoint.max-nonfinite""",
    "resume": "device workers",
    "evaluate davis": f"""{NETWORK} data out results resolution radius topk context-frames temperature std max-memory
        year sequences""",
    "evaluate knn": f"{NETWORK} data out ks temperature resize crop encode-batch",
    "evaluate correspond": f"""{NETWORK} data out preset facet depth block stride resolution shape sampling places alphas
        threshold split layout categories max-pictures""",
    "evaluate detect": f"""{NETWORK} data out preset train-split test-split limit negatives pyramid blocks heads
        width anchor-scale proposals rois augmentation short-sides long-side batch-size epochs decay-at
        warmup-steps lr lr-batch weight-decay layer-decay drop-path clip precision seed workers max-pictures""",
    "evaluate discover": f"""{NETWORK} data out methods facet block num-patches tau mass head split
        image-list hard max-pictures""",
    "evaluate finetune": f"""{NETWORK} data out preset labels token epochs batch-size lr min-lr
        warmup-epochs weight-decay layer-decay drop-path mixup cutmix smoothing rand-augment erasing head-std resize
        crop precision seed per-class encode-batch workers""",
    "evaluate linear": f"""{NETWORK} data out preset labels blocks mean-patch crops lrs epochs batch-size
        held-out resize crop precision seed per-class encode-batch workers""",
    "evaluate segment": f"""{NETWORK} data out method preset kind train-split test-split limit seed max-pictures
        workers steps batch-size crop short-side lr weight-decay warmup layer-decay drop-path blocks rescale
        normed channels auxiliary-channels test stride precision resolution memory-patches k temperature
        max-memory iterations restarts""",
    "evaluate all": f"{NETWORK} suite out",
    "evaluate --compare": "compare allow-different",
    "export": "weights side num-heads position-embedding allow-partial to out size",
    "show": f"{NETWORK} out resolution k window border",
}
"""Users write these in their scripts: one that goes or is renamed is a change to announce."""


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command_are_these(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # help in one column
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    offered = re.findall(r"^(?:│ |  )--([a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(offered) == sorted(OPTIONS[command].split())


def test_settings_of_components_are_options_too(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["selfpatch"] == {"num_prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16, "head_norm": True}


def test_help_answers_without_torch() -> None:
    commands = [[*command.split(), "--help"] for command in OPTIONS] + [["--help"], ["evaluate"], ["--version"]]
    program = f"""
import contextlib, sys
from selfpatch.cli.main import main
for command in {commands}:
    with contextlib.suppress(SystemExit):
        assert main(command) == 0
print("imported:", *[name for name in ("torch", "timm", "numpy", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


def test_no_command_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "selfpatch pretrain" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{selfpatch.__version__}\n"


def test_the_program_ends_with_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "selfpatch", "pretend"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("selfpatch: there is no command 'pretend'")
