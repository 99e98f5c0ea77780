"""Parity with the methods' released code: every recorded quantity holds, and a mistake would not go unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfpatch.ops import relation
from tests.parity import replay
from tests.parity.check import Check, all_hold, compare, compare_exactly, compare_norms
from tests.parity.kinds import MissingKind
from tests.parity.replay import find_bundles, kinds_of
from tests.parity.report import replay_all

NEWER = ["debias", "depth_losses", "depth_metrics", "distill", "gram", "hummingbird", "koleo", "neco"]
NEWER += ["overclustering", "paka", "retrieval", "sinkhorn"]
LOSSES_AND_OPS = [f"newer/{name}" for name in NEWER]
BUNDLES = ["mini/dino", "mini/selfpatch", "mini/sere", "pieces", *LOSSES_AND_OPS]
"""Bundles that travel with the project."""
SLOW_BUNDLES = ["dino", "selfpatch", "sere", "pieces", "davis_metric", "released/selfpatch_vits", "released/statistics"]
QUICK_BUNDLES = [
    "released/position_embeddings",
    "released/davis_dino",
    "released/davis_selfpatch",
    "newer/dinov2reg_tiny",
    "newer/dinov3_tiny",
    "newer/rope",
    "newer/vos_dinov3",
]
FULL_BUNDLES = [*QUICK_BUNDLES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BUNDLES)]
"""Bundles outside of the repository."""
WITH_OTHER_TESTS = [f"released/ibot_{name}" for name in ("head_facts", "semi_supervised_head", "separate")]
WITH_OTHER_TESTS += ["released/ibot_teacher_shared", "released/sere_vitb_heads", "released/schedules"]


def assert_all_hold(bundle: Path) -> None:
    checks = list(replay(bundle))
    assert checks
    assert all_hold(checks), "\n".join(str(check) for check in checks if not check.holds)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_quantity_holds(golden_dir: Path, bundle: str) -> None:
    assert_all_hold(golden_dir / bundle)


@pytest.mark.parametrize("bundle", FULL_BUNDLES)
def test_every_quantity_of_the_full_bundles_holds(full_golden_dir: Path, bundle: str) -> None:
    if not (full_golden_dir / bundle).is_dir():
        pytest.skip(f"no bundle {full_golden_dir / bundle}")
    assert_all_hold(full_golden_dir / bundle)


def test_every_bundle_is_replayed_by_a_test(full_golden_dir: Path) -> None:
    replayed = {*BUNDLES, *SLOW_BUNDLES, *QUICK_BUNDLES, *WITH_OTHER_TESTS}
    known = {bundle for bundle in find_bundles(full_golden_dir) if not isinstance(kinds_of(bundle)[0], MissingKind)}
    assert {str(bundle.relative_to(full_golden_dir)) for bundle in known} <= replayed


def copy_of(bundle: Path, folder: Path) -> Path:
    """A copy to change; the recorded files may be read-only."""
    folder.mkdir()
    for file in bundle.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def holding(bundle: Path) -> bool:
    """A replay that refuses a bundle does not hold either."""
    try:
        return all_hold(replay(bundle))
    except ValueError:
        return False


def test_an_unchanged_copy_holds(golden_dir: Path, tmp_path: Path) -> None:
    assert holding(copy_of(golden_dir / "mini" / "dino", tmp_path / "copy"))


@pytest.mark.parametrize("bundle", ["dino", "selfpatch", "sere"])
@pytest.mark.parametrize("name", ["backbone.blocks.1.mlp.fc1.weight", "backbone.pos_embed"])
def test_a_perturbed_weight_is_noticed(golden_dir: Path, tmp_path: Path, bundle: str, name: str) -> None:
    copy = copy_of(golden_dir / "mini" / bundle, tmp_path / "copy")
    checkpoint = torch.load(copy / "initial.pth", weights_only=True)
    for tensor in (checkpoint["student"][f"module.{name}"], checkpoint["teacher"][name]):
        tensor.view(-1)[0] += 1e-2
    torch.save(checkpoint, copy / "initial.pth")
    assert not holding(copy)


@pytest.mark.parametrize(
    ("bundle", "setting", "wrong"),
    [
        ("dino", "clip_grad", 0.31),
        ("dino", "clip_mode", "global"),
        ("dino", "freeze_last_layer_epochs", 0),
        ("dino", "norm_last_layer", False),
        ("selfpatch", "patch_loss_weight", 0.11),
        ("selfpatch", "k", 3),
        ("selfpatch", "border", "clip"),
        ("selfpatch", "student_temp", 0.101),
        ("selfpatch", "center_momentum", 0.91),
        ("sere", "spatial_weight", 0.21),
        ("sere", "channel_temp", 0.11),
        ("sere", "overlap_size", 12),
        ("sere", "teacher_patch_temp", 0.07),
        ("sere", "student_temp", 0.101),
        ("sere", "norm_last_layer", True),
    ],
)
def test_a_wrong_setting_is_noticed(
    golden_dir: Path, tmp_path: Path, bundle: str, setting: str, wrong: float | str
) -> None:
    copy = copy_of(golden_dir / "mini" / bundle, tmp_path / "copy")
    record = json.loads((copy / "trajectory.json").read_text())
    assert record["config"][setting] != wrong
    record["config"][setting] = wrong
    (copy / "trajectory.json").write_text(json.dumps(record))
    assert not holding(copy)


@pytest.mark.parametrize(
    "name", ["lost.features0", "vos.features", "knn.train", "moby.step2.x1", "mocov3.step0.x2", "moby.initial.queue1"]
)
def test_perturbed_features_of_a_piece_are_noticed(golden_dir: Path, tmp_path: Path, name: str) -> None:
    copy = copy_of(golden_dir / "pieces", tmp_path / "copy")
    tensors = load_file(copy / "tensors.safetensors")
    save_file({**tensors, name: tensors[name].flip(0).contiguous()}, copy / "tensors.safetensors")
    assert not holding(copy)


def with_a_pair_apart(sere: Path, folder: Path) -> Path:
    """A copy in which two crops of image 0 lie apart, with the grids that the released code makes of them: -2."""
    copy = copy_of(sere, folder)
    tensors = load_file(copy / "tensors.safetensors")
    tensors["step0.boxes"][0, 0] = torch.tensor([0.0, 0.0, 50.0, 40.0, 0.0])
    tensors["step0.boxes"][0, 1] = torch.tensor([60.0, 50.0, 40.0, 50.0, 1.0])
    for part in ("query", "key"):
        tensors[f"step0.grid_global_{part}"][0] = -2.0
    save_file(tensors, copy / "tensors.safetensors")
    return copy


def grid_checks(bundle: Path) -> list[Check]:
    return [check for check in replay(bundle) if check.name.startswith("grid_global")]


def test_a_pair_of_crops_without_overlap_holds(golden_dir: Path, tmp_path: Path) -> None:
    assert all_hold(grid_checks(with_a_pair_apart(golden_dir / "mini" / "sere", tmp_path / "copy")))


def test_a_pair_without_overlap_that_samples_something_is_noticed(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = with_a_pair_apart(golden_dir / "mini" / "sere", tmp_path / "copy")
    monkeypatch.setattr(relation, "OUTSIDE", 0.9)
    checks = grid_checks(copy)
    assert checks
    assert not all_hold(checks)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no golden bundle; give a folder with"):
        list(replay(tmp_path))


def test_damaged_files_fail_alone(golden_dir: Path, tmp_path: Path) -> None:
    """A bundle whose files cannot be read is named, and the others are replayed."""
    shutil.copytree(golden_dir / "newer" / "koleo", tmp_path / "good")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "expected.json").write_text("{")
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "tensors.safetensors").write_bytes(b"no tensors at all")
    outcomes = replay_all([tmp_path], lambda _: None)
    assert [outcome.holds for outcome in outcomes] == [True, False, False]
    for outcome, file in zip(outcomes[1:], ("expected.json", "tensors.safetensors"), strict=True):
        assert outcome.error.startswith(f"cannot read {outcome.bundle / file}: ")


def test_checks_can_fail() -> None:
    one = torch.tensor([1.0, 2.0])
    assert compare("same", one, one, 1e-5).holds
    assert not compare("off", one + 1e-4, one, 1e-5).holds
    assert not compare("not a number", one * float("nan"), one, 1e-5).holds
    assert not compare_exactly("another", torch.tensor([1, 2]), torch.tensor([1, 3])).holds
    assert not compare_exactly("longer", torch.tensor([1, 2, 3]), torch.tensor([1, 2])).holds
    assert not compare_norms("off", {"a": one * 1.001}, {"a": one}, 1e-4).holds
    assert not all_hold([]), "nothing checked is nothing shown"
    assert not all_hold([Check("good", 0.0, 1.0), Check("bad", 2.0, 1.0)])
    with pytest.raises(ValueError, match=r"off has shape \[2\], \[3\] is expected"):
        compare("off", one, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="other tensors than expected"):
        compare_norms("names", {"a": one}, {"b": one}, 1.0)
