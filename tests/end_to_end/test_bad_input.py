"""Mistakes: exit code 2, one sentence that says what to do, and nothing left behind that blocks the next try."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from selfpatch.cli.main import main
from tests.helpers.command_line import TINY, write_davis, write_photos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are wrong beside some that are right, among them `run`, a finished run."""
    root = tmp_path_factory.mktemp("place")
    write_photos(root / "photos", 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", f"{root}-cache")
        assert main(["pretrain", *TINY, "--data", "photos", "--out", "run", "--epochs", "1"]) == 0
    _write_data(root)
    _write_weights(root)
    (root / "typo.yaml").write_text("epoch: 3\n")
    (root / "unread.yaml").write_text("moby: {queue_size: 64}\n")
    (root / "broken.yaml").write_text("epochs: [3\n")
    (root / "broken-run").mkdir()
    (root / "broken-run" / "config.yaml").write_text("epochs: [1")
    return root


def _write_data(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "file").write_text("hello\n")
    (root / "list").write_text("away.png\ngone.png\n" * 10)
    (root / "full").mkdir()
    (root / "full" / "letter").write_text("keep me")
    for name, every in [("corrupt", 1), ("partly-corrupt", 3)]:
        for photo in sorted(write_photos(root / name, 24).iterdir())[::every]:
            photo.write_bytes(b"no image")
    write_davis(root / "davis")
    (write_davis(root / "davis-without-a-mask") / "Annotations/480p/second/00002.png").unlink()
    shutil.rmtree(write_davis(root / "davis-without-sets") / "ImageSets")
    write_photos(root / "knn" / "train" / "cat", 2)


def _write_weights(root: Path) -> None:
    (root / "code.pth").write_bytes(pickle.dumps({"state_dict": print}))
    torch.save({"state_dict": {"a.weight": torch.zeros(3)}}, root / "no-vit.pth")
    torch.save([1, 2], root / "no-tensors.pth")
    whole = (root / "no-vit.pth").read_bytes()
    (root / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (root / "nothing.pth").write_bytes(b"")
    (root / "text.safetensors").write_text("hello")


@pytest.fixture(autouse=True)
def work_in_the_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in `place`, which it leaves unchanged."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{place}-cache")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    code = main(arguments)
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("selfpatch: ")
    assert error.count("\n") == 1, error
    return error


def assert_words(words: str, sentence: str) -> None:
    """`words` are parts that appear in this order, with `...` between them."""
    found = 0
    for part in words.split(" ... "):
        found = sentence.find(part, found)
        assert found >= 0, f"{part!r} is not in: {sentence}"


REFUSED_RUNS = [
    # data
    ("--data nowhere", "no folder or file 'nowhere'; give a folder of images, or a text file with one path a line"),
    ("--data empty", "no images in ... empty; files with these endings are read: .jpg"),
    ("--data list", "20 of 20 image files that were tried cannot be found, e.g. ... away.png; list paths relative to"),
    ("--data corrupt", "unreadable, e.g. ... corrupt ... give a folder or a list of images that can be read"),
    ("--data corrupt --loader.max-bad 1", "unreadable, e.g. ... that can be read"),
    ("--data partly-corrupt", "a share of 0.01, e.g. ... partly-corrupt ... allow more with --loader.max-bad"),
    ("--batch-size 64", "a batch of 64 images is larger than the data, 22 images; use --batch-size 22 or less"),
    ("--batch-size 6 --accumulate 4", "batch_size 6 cannot be split into 4 micro-batches; let accumulate divide it"),
    # where to
    ("--out full", "full already has files in it; name another folder with --out"),
    ("--out run", "run already holds a run; use `selfpatch resume run`, or name another --out"),
    ("--out file", "file is a file; name a folder with --out"),
    ("--out file/below", "cannot write to file/below (Not a directory); name another folder with --out"),
    # names
    ("--model vit_smal", "unknown model 'vit_smal'; did you mean vit_small? Else use one of: vit_tiny, vit_small"),
    ("--method dinoo", "unknown method 'dinoo'; did you mean dino? Else use one of: densecl, dino, ibot, "),
    (
        "--objective selfpatch+sere+x",
        "unknown objective 'x'; use one of: distill, gram, koleo, leopart, neco, paka, retain, "
        "selfpatch, selfpatch_pairs, sere, sere_pairs, none",
    ),
    (
        "--recipe sampels",
        "no recipe 'sampels'; did you mean samples? Else use the path of a .yaml file or one of: ... samples",
    ),
    ("--recipe typo.yaml", "epoch is not a setting; did you mean 'epochs'?"),
    ("--recipe broken.yaml", "broken.yaml is not valid YAML"),
    ("--selfpatch.kk 3", "selfpatch.kk is not a setting; did you mean 'k'?"),
    ("--pears.x 1", "nothing reads the settings of 'pears': ... did you mean 'pairs'?"),
    (
        "--objective selfpatch+none",
        "objective is 'selfpatch+none'; join names of objectives by '+', or use 'none' alone",
    ),
    ("--epochs 1e300", "epochs is ... use 1e+06 or less"),
    ("--seed 99999999999999999999", "seed is 99999999999999999999; use a number below 9.22"),
    ("--dino.student-temp .nan", "dino.student_temp is nan; use a finite number"),
    ("--loss-weights.patch .nan", "loss_weights.patch is nan; use a finite number"),
    ("--loss-weights.patch -1", "loss_weights.patch is -1"),
    ("--optimizer.layer-decay 0", "optimizer.layer_decay is 0"),
    ("--loader.workers 100000", "workers is 100000; use 1024 or less"),
    ("--data=", "data is ''; name something, or leave it out"),
    ("--selfpach.k 3", "nothing reads the settings of 'selfpach': the run's method and objectives are dino, selfpatch"),
    ("--recipe unread.yaml", "nothing reads the settings of 'moby': the run's method and objectives are dino, self"),
    ("--crops.num-locals 3", "crops.num_locals is not a setting; did you mean 'num_local'?"),
    ("--bath-size 3", "unknown option '--bath-size'; did you mean --batch-size?"),
    ("--zzz", "unknown option '--zzz'; `selfpatch pretrain --help` lists the options"),
    ("photos", "unexpected word 'photos'; write --data photos"),
    ("--loss-weights.patchy 1", "loss_weights names 'patchy', which is no loss here; the losses are: image, patch"),
    # values of the wrong kind
    ("--epochs abc", "--epochs: got abc; use None or FLOAT; `selfpatch pretrain --help`"),
    ("--crops.global-scale 0.5", "--crops.global-scale ... 2 values; `selfpatch pretrain --help`"),
    ("--precision fp64", "'fp64' ... --precision ... fp32 ... bf16"),
    ("--batch-size 2.5", "--batch-size ... '2.5'"),
    ("--selfpatch.k", "option --selfpatch.k lacks a value"),
    ("--selfpatch.k two", "selfpatch.k is 'two'; use a whole number"),
    ("--selfpatch.k 2.5", "selfpatch.k is 2.5; use a whole number"),
    ("--selfpatch.student-temp cold", "selfpatch.student_temp is 'cold'; use a number"),
    ("--selfpatch.head-norm 1", "head_norm is 1; use true or false"),
    ("--loss-weights.patch much", "loss_weights.patch is 'much'; use a number"),
    # values out of range
    ("--epochs 0", "epochs is 0.0; use a number above 0"),
    ("--epochs inf", "epochs is inf; use a finite number"),
    ("--epochs nan", "epochs is nan; use a finite number"),
    ("--seed -1", "seed is -1; use 0 or more"),
    ("--optimizer.teacher-temp -0.1", "optimizer.teacher_temp is -0.1; use a number above 0"),
    ("--optimizer.base-lr -0.1", "optimizer.base_lr is -0.1; use 0 or more"),
    ("--optimizer.teacher-momentum 1.5", "optimizer.teacher_momentum is 1.5; use 1 or less"),
    ("--crops.global-scale 2 1", "crops.global_scale is [2.0, 1.0]; use [low, high] with 0 < low <= high <= 1"),
    ("--crops.solarize 0 2 0", "crops.solarize[1] is 2.0; use 1 or less"),
    ("--crops.hue 7", "hue is 7.0; use 0.5 or less"),
    ("--crops.brightness -1", "crops.brightness is -1.0; use 0 or more"),
    ("--loader.workers -1", "loader.workers is -1; use 0 or more"),
    ("--watch.log-every 0", "watch.log_every is 0; use a number above 0"),
    ("--checkpoint.keep 0", "checkpoint.keep is 0; use a number above 0"),
    ("--selfpatch.num-prototypes 0", "selfpatch.num_prototypes is 0; use a number above 0"),
    ("--selfpatch.student-temp -1", "selfpatch.student_temp is -1; use a number above 0"),
    ("--dino.hidden-dim -5", "dino.hidden_dim is -5; use a number above 0"),
    # what does not go together
    (
        "--crops.global-size 30",
        "crops.global_size is 30: patch size 4 does not divide ... use a multiple of 4, e.g. 32",
    ),
    (
        "--crops.local-size 15",
        "crops.local_size is 15: patch size 4 does not divide ... use a multiple of 4, e.g. 16",
    ),
    ("--selfpatch.k 9", "k is 9, but a 3x3 window has 8 neighbours; lower k or widen the window"),
    ("--selfpatch.window 4", "window is 4; use an odd number from 3 on, or 'all'"),
    ("--backbone.num-heads 5", "width 24 cannot be split into 5 attention heads; change backbone.num_heads"),
    ("--model test_vit", "patch_size is 4, but the timm model 'test_vit' has its own; leave it out"),
    ("--model swin_tiny", "patch_size is 4, but the model 'swin_tiny' has no such setting; leave it out"),
    (
        "--model init",
        "model is 'init', the architecture of the initial weights, but none are named; add --init WEIGHTS",
    ),
    ("--masks.ratio 0.5 0.1", "masks.ratio is [0.5, 0.1]; use [low, high] with 0 <= low <= high <= 1"),
    ("--channels 4", "its number of channels is 3, not 4; use images of 4, or --channels 3"),
    # devices
    ("--device gpu", "unknown device 'gpu'; use auto, cpu, cuda, cuda:N or mps"),
    # weights to start from
    (
        "--init nowhere",
        "no weights at 'nowhere'; use a run directory, a checkpoint file, a .safetensors file, ... or hf:OWNER/NAME",
    ),
    ("--init code.pth", "code.pth is no checkpoint: it is a pickle of another library ... as .safetensors"),
    ("--init timm:nope", "unknown model 'nope'; use one of"),
    ("--init run --backbone.embed-dim 48", "run is of another architecture: ... name its architecture with --model"),
    ("--init run --patch-size 8", "run is of another architecture: ... [24, 3, 4, 4] there and [24, 3, 8, 8] here"),
    (
        "--init run --backbone.depth 1",
        "12 unexpected (backbone.trunk.blocks.1. ... give --allow-partial to load what matches",
    ),
]


@pytest.mark.parametrize(("options", "words"), REFUSED_RUNS, ids=[options for options, _ in REFUSED_RUNS])
def test_a_run_that_cannot_be_is_refused_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    before = sorted(Path().iterdir())
    usual = [*TINY, "--data", "photos", "--out", "refused", "--epochs", "1"]
    assert_words(words, complaint(capsys, "pretrain", *usual, *options.split()))
    assert sorted(Path().iterdir()) == before
    assert [path.name for path in Path("full").iterdir()] == ["letter"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    error = complaint(capsys, "pretrain", *TINY, "--data", "photos", "--out", "refused", "--device", "cuda")
    assert_words("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu", error)
    assert not Path("refused").exists()


def test_a_refused_run_does_not_block_the_next_try(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    usual = ["pretrain", *TINY, "--data", "partly-corrupt", "--out", str(out), "--epochs", "1"]
    complaint(capsys, *usual)
    assert main([*usual, "--loader.max-bad", "0.5"]) == 0
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert skipped
    assert all("partly-corrupt" in line and "it is empty, damaged, or no image" in line for line in skipped)


def test_a_run_that_diverges_keeps_what_led_to_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    usual = ["pretrain", *TINY, "--data", "photos", "--out", str(tmp_path / "out"), "--epochs", "2"]
    error = complaint(capsys, *usual, "--optimizer.base-lr", "1e30", "--optimizer.warmup-epochs", "0")
    assert_words("not finite for 5 steps in a row ... failed/step- ... Try a lower optimizer.base_lr", error)
    assert len(list((tmp_path / "out" / "failed").iterdir())) == 1
    assert (tmp_path / "out" / "metrics.jsonl").read_text()


REFUSED = [
    # what does not go together
    (
        "pretrain --data photos --out refused --recipe ibot-vits16 --model resnet50 --patch-size None",
        "ibot hides patches from the student, but resnet50 embeds no patches that could be masked; use a ViT or a Swin",
    ),
    (
        "pretrain --data photos --out refused --recipe moby-vits16 --batch-size 6 --moby.queue-size 64",
        "moby.queue_size is 64, which the batch of 6 images does not divide; use a multiple, e.g. 66",
    ),
    ("pretrain --channels 4", "channels is 4, but the sample photographs have 3; give your own images with --data"),
    ("pretend", "there is no command 'pretend'; did you mean `selfpatch pretrain`?"),
    # resume
    ("resume", "selfpatch resume: DIR; `selfpatch resume --help`"),
    ("resume nowhere", "nowhere is no run: it has no config.yaml; name the --out of a `selfpatch pretrain`"),
    ("resume photos", "photos is no run: it has no config.yaml; name the --out of a `selfpatch pretrain`"),
    ("resume broken-run", "broken-run/config.yaml cannot be read: ... not valid YAML"),
    ("resume run --workers -1", "workers is -1; use 0 or more"),
    ("resume run --workers many", "--workers: got many; use None or INT; `selfpatch resume --help`"),
    ("resume run --device gpu", "unknown device 'gpu'; use auto, cpu, cuda, cuda:N or mps"),
    # weights
    (
        "evaluate davis --data davis",
        "no weights were named; give --weights with a run directory, a checkpoint or timm:",
    ),
    (
        "evaluate davis --data davis --weights nowhere",
        "no weights at 'nowhere'; use a run directory, a checkpoint file",
    ),
    ("evaluate davis --data davis --weights photos", "photos is no run: it has no config.yaml"),
    (
        "evaluate davis --data davis --weights file",
        "file is no checkpoint: it is ... give a file that torch.save",
    ),
    ("evaluate davis --data davis --weights cut.pth", "cut.pth is no checkpoint, or a damaged one"),
    ("evaluate davis --data davis --weights nothing.pth", "nothing.pth is no checkpoint: it is empty; download"),
    ("evaluate davis --data davis --weights code.pth", "pickle of another library ... could run code ... .safetensors"),
    (
        "evaluate davis --data davis --weights no-vit.pth",
        "no-vit.pth holds no plain ViT, Swin, ResNet or ConvNeXt; its keys are a.weight",
    ),
    ("evaluate davis --data davis --weights no-tensors.pth", "no-tensors.pth holds no state dict; tensors by name"),
    ("evaluate davis --data davis --weights text.safetensors", "text.safetensors is no checkpoint: it is text that be"),
    ("evaluate davis --data davis --weights run --num-heads 5", "24 cannot be split into 5 heads; give another --num-"),
    ("evaluate davis --data davis --weights run --num-heads 0", "num_heads is 0; use a number above 0"),
    ("evaluate davis --data davis --weights run --side left", "'left' ... --side ... teacher"),
    # DAVIS
    ("evaluate davis --weights run", "selfpatch evaluate davis ... --data ... `selfpatch evaluate davis --help`"),
    ("evaluate davis --weights run --data nowhere", "no DAVIS at nowhere: ... give the folder that holds it"),
    ("evaluate davis --weights run --data photos", "no DAVIS at photos: ... give the folder that holds it"),
    (
        "evaluate davis --weights run --data davis-without-sets",
        "has no ImageSets/2017/val.txt ... or name the sequences",
    ),
    ("evaluate davis --weights run --data davis-without-a-mask", "second has no mask ... 00002.png; every frame"),
    ("evaluate davis --weights run --data davis --sequences third", "'third' has no folder ... check the setting"),
    (
        "evaluate davis --weights run --data davis --resolution 2",
        "resolution 2 is too small for patches of 4; use e.g. 480",
    ),
    ("evaluate davis --weights run --data davis --resolution 48 --topk 0", "topk is 0; use a number above 0"),
    ("evaluate davis --weights run --data davis --colour red", "--colour ... only other evaluations have it: depth"),
    ("evaluate davis --weights run --data davis --out file", "cannot write to file (File exists); name another folder"),
    ("evaluate davis --results nowhere --data davis", "nowhere has no results for first, second; add them, or name"),
    # k-NN
    (
        "evaluate knn --weights run --data photos",
        "photos has no train/ and val/ (or test/); this evaluation needs",
    ),
    ("evaluate knn --weights run --data knn", "knn has no train/ and val/ (or test/); this evaluation needs both"),
    ("evaluate nn --weights run --data knn", "there is no evaluation 'nn'; use one of: correspond, davis, depth"),
    ("evaluate knn --weights= --data knn", "weights is ''; name something, or leave it out"),
    # suites and comparisons
    ("evaluate all --weights run", "selfpatch evaluate all ... --suite ... `selfpatch evaluate all --help`"),
    ("evaluate all --suite photos/000.png", "no weights were named; give --weights with a run directory"),
    (
        "evaluate all --suite nowhere.yaml --weights run",
        "there is no file nowhere.yaml; use a built-in suite (classification, dense, papers) or a YAML file like",
    ),
    ("evaluate all --suite file --weights run --out out", "file holds no list of evaluations; write one a line, like"),
    ("evaluate --compare", "a comparison needs two or more results; 0 named"),
    ("evaluate --compare nowhere.json", "a comparison needs two or more results; 1 named"),
    ("evaluate --compare nowhere.json file", "no result at nowhere.json; give the path of a result.json"),
    ("evaluate --compare file file", "file is not a result; give a result.json that an evaluation wrote"),
    # show
    ("show --weights run", "no image was named; give one or more files"),
    ("show photos/000.png", "no weights were named; give --weights with a run directory"),
    ("show --weights run photos/000.png --k 9", "k is 9, but a 3x3 window has 8 neighbours; lower k or widen"),
    ("show --weights run photos/000.png --window 4", "window is 4; use an odd number from 3 on, or 'all'"),
    ("show --weights run photos/000.png --window wide", "--window: got wide; use INT or all;"),
    (
        "show --weights run photos/000.png --resolution 1",
        "resolution 1 is below one patch of 4 pixels; use a larger one",
    ),
    (
        "show --weights run photos/000.png --out file",
        "cannot write to file (File exists); name another folder with --out",
    ),
    ("show --weights run nowhere.png", "cannot read nowhere.png: No such file"),
    ("show --weights run file", "cannot read file: it is empty, damaged, or no image"),
]


@pytest.mark.parametrize(("command", "words"), REFUSED, ids=[command for command, _ in REFUSED])
def test_a_command_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], command: str, words: str) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    assert_words(words, complaint(capsys, *command.split()))
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()} == files


def test_images_that_changed_since_the_run_began(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 24)
    run = str(tmp_path / "run")
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", run, "--epochs", "1"]) == 0
    (photos / "000.png").unlink()
    assert_words(f"(24 then, 23 now); put them back, or ... --init {run}", complaint(capsys, "resume", run))
    shutil.rmtree(photos)
    assert_words("no folder or file", complaint(capsys, "resume", run))


def test_a_checkpoint_of_another_run_is_passed_over(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree("run", tmp_path / "run")
    shutil.copytree("photos", tmp_path / "photos")
    own = max((tmp_path / "run" / "checkpoints").iterdir())
    state = torch.load(own, weights_only=True)
    name = next(iter(state["pretrainer"]))
    state["step"] += 1
    state["pretrainer"][name] = torch.zeros(3, 3)
    torch.save(state, own.with_name(f"step-{state['step']:08d}.pt"))
    with pytest.warns(UserWarning, match=rf"is of another run and is skipped: {re.escape(name)} is \[3, 3\] there"):
        assert main(["resume", str(tmp_path / "run")]) == 0
    assert "report" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data.json", "{", "record of the run's images is damaged: ... data.json is not valid JSON"),
        ("data.json", "[]", "data.json holds []; use a mapping of names to values; remove it"),
        ("data.json", '{"images": "3", "fingerprint": 1}', "has the images '3'; use a whole number"),
        (
            "config.yaml",
            "epochs: 1\nepochs: 2",
            "config.yaml cannot be read: ... gives 'epochs' twice, in lines 1 and 2",
        ),
        ("config.yaml", "a: &a [*a]", "config.yaml cannot be read: ... has an alias of what contains it"),
        ("config.yaml", "[1]", "config.yaml cannot be read: ... holds a list; write a mapping"),
        ("config.yaml", "epochs: .nan", "config.yaml cannot be read: epochs is nan; use a finite number"),
        ("config.yaml", "optimizer: 3", "config.yaml cannot be read: optimizer is 3; give a mapping of settings"),
    ],
)
def test_a_run_directory_changed_by_hand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str, content: str, words: str
) -> None:
    shutil.copytree("run", tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    assert_words(words, complaint(capsys, "resume", str(tmp_path / "run")))
