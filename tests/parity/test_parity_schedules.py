"""Recipes have the schedules and parameter groups of the published commands, and a deviation of either is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from tests.parity import parameter_groups, schedules
from tests.parity.check import all_hold
from tests.parity.parameter_groups import NETWORKS, replay_parameter_groups
from tests.parity.schedules import COMMANDS, replay_schedules


def part_of(bundle: Path, file: str, folder: Path, *names: str, without: str = "") -> Path:
    """Write a bundle with some entries of one file, or all of them, without one part of each."""
    record = json.loads((bundle / file).read_text())
    kept = {name: {k: v for k, v in record[name].items() if k != without} for name in names or record}
    (folder / file).write_text(json.dumps(kept))
    return folder


def deviate(monkeypatch: pytest.MonkeyPatch, module: Any, changes: Mapping[str, Any]) -> None:
    """Let the replay load each recipe with other settings than its own."""

    def load(name: str) -> RunConfig:
        return load_recipe(name).override(changes)

    monkeypatch.setattr(module, "load_recipe", load)


def test_every_command_holds_at_the_chosen_steps(golden_dir: Path, tmp_path: Path) -> None:
    bundle = part_of(golden_dir / "released" / "schedules", "schedules.json", tmp_path, without="sums")
    checks = list(replay_schedules(bundle))
    assert all_hold(checks), "\n".join(str(check) for check in checks if not check.holds)
    assert len(json.loads((bundle / "schedules.json").read_text())) == len(COMMANDS) == 12


@pytest.mark.slow
def test_sums_over_all_steps_hold(golden_dir: Path) -> None:
    assert all_hold(replay_schedules(golden_dir / "released" / "schedules"))


@pytest.mark.parametrize(
    ("command", "optimizer"),
    [
        ("moby_swin_tiny", {"cosine_over": "steps_after_warmup"}),
        ("moby_swin_tiny", {"warmup_start_lr": 0.0}),
        ("moby_swin_tiny", {"warmup_includes_peak": True}),
        ("moby_deit_small", {"lr_delay": 0}),
        ("moby_deit_small", {"teacher_momentum": 0.991}),
        ("moco-v3 vit_small, batch 4096 (CONFIG.md, 32 GPUs)", {"warmup_includes_peak": True}),
        ("moco-v3 vit_small, batch 1024 (CONFIG.md, one node)", {"weight_decay": 0.11}),
        ("sere vit_base, README command", {"freeze_last_layer_epochs": 1}),
        ("sere vit_base, README command", {"min_lr": 1e-6}),
        ("sere vit_small, README command", {"clip": 3.0}),
        ("ibot vit_small, README command (800 epochs, 16 x 64)", {"warmup_teacher_temp_epochs": 29}),
        ("ibot vit_small, README command (800 epochs, 16 x 64)", {"teacher_patch_temp": 0.06}),
        ("dino vit_small at batch 1024, 200 epochs", {"update_interval": "epoch"}),
        ("selfpatch vit_small, paper (200 epochs)", {"weight_decay_end": 0.41}),
    ],
)
def test_another_schedule_is_noticed(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, optimizer: dict[str, Any]
) -> None:
    bundle = part_of(golden_dir / "released" / "schedules", "schedules.json", tmp_path, command, without="sums")
    assert all_hold(replay_schedules(bundle))
    deviate(monkeypatch, schedules, {"optimizer": optimizer})
    assert not all_hold(replay_schedules(bundle))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_holds(golden_dir: Path, tmp_path: Path, network: str) -> None:
    bundle = part_of(golden_dir / "released" / "schedules", "parameters.json", tmp_path, network)
    checks = list(replay_parameter_groups(bundle))
    assert all_hold(checks), "\n".join(str(check) for check in checks if not check.holds)


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("moby_swin_tiny", {"optimizer": {"weight_decay_on": "matrices_but_positions"}}),
        ("moby_deit_small", {"optimizer": {"weight_decay_on": "matrices_but_positions"}}),
        ("moby_deit_small", {"optimizer": {"clip_mode": "tensor"}}),
        ("moco-v3 vit_small, stop_grad_conv1", {"optimizer": {"weight_decay_on": "matrices"}}),
        ("moco-v3 vit_small, stop_grad_conv1", {"backbone": {"freeze_patch_embed": False}}),
        ("sere vit_base patch 16, norm_last_layer true, shared_head true", {"ibot": {"prototypes": "separate"}}),
        ("sere vit_small patch 16, norm_last_layer false, shared_head true", {"ibot": {"norm_last_layer": True}}),
        (
            "sere vit_small patch 16, norm_last_layer false, shared_head true",
            {"optimizer": {"weight_decay_on": "matrices"}},
        ),
        ("dino vit_small patch 16, norm_last_layer true", {"optimizer": {"freeze_last_layer_epochs": 0}}),
        ("selfpatch vit_small patch 16, norm_last_layer true", {"optimizer": {"clip_mode": "global"}}),
    ],
)
def test_other_parameter_groups_are_noticed(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, changes: dict[str, Any]
) -> None:
    bundle = part_of(golden_dir / "released" / "schedules", "parameters.json", tmp_path, network)
    deviate(monkeypatch, parameter_groups, changes)
    assert not all_hold(replay_parameter_groups(bundle))


def test_commands_and_networks_without_a_recipe_are_refused(tmp_path: Path) -> None:
    for file, replay in (("schedules.json", replay_schedules), ("parameters.json", replay_parameter_groups)):
        (tmp_path / file).write_text(json.dumps({"unknown": {}}))
        with pytest.raises(ValueError, match=r"no recipe is known for the .* 'unknown'; add it to tests/parity/"):
            list(replay(tmp_path))
