"""A command that torchrun calls again continues the run that it began, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.api.restarted import begun_run
from selfpatch.checkpoints.run_dir import RunDirectory
from tests.helpers.tiny import tiny_config


@pytest.fixture(autouse=True)
def restarting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")


def test_the_run_goes_on_with_its_settings_and_the_machine_of_this_start(tmp_path: Path) -> None:
    config = tiny_config(out=str(tmp_path / "run"), minutes=5)
    assert begun_run(config) is None
    # A run records the epochs that fit, the weight of each loss and the renderer.
    recorded = config.override({"epochs": 7, "loss_weights": {"image": 1.0}, "loader": {"render": "plain"}})
    run = RunDirectory.create(tmp_path / "run", recorded.to_dict())
    begun = begun_run(config.override({"parallel": "fsdp", "loader": {"workers": 3}, "checkpoint": {"keep": 9}}))
    assert begun is not None
    assert begun[0].path == run.path
    assert (begun[1].epochs, begun[1].loader.render, begun[1].loss_weights) == (7, "plain", {"image": 1.0})
    assert (begun[1].parallel, begun[1].loader.workers, begun[1].checkpoint.keep) == ("fsdp", 3, 9)


@pytest.mark.parametrize("changed", [{"batch_size": 8}, {"crops": {"num_local": 3}}, {"selfpatch": {"k": 3}}])
def test_a_run_of_other_settings_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    config = tiny_config(out=str(tmp_path / "run"))
    RunDirectory.create(tmp_path / "run", config.to_dict())
    with pytest.raises(ValueError, match=r"already holds a run, with \S*(batch_size|num_local|k) \S+ and not \d; name"):
        begun_run(config.override(changed))


def test_a_run_whose_directory_is_not_named_is_refused() -> None:
    with pytest.raises(ValueError, match="has to find its directory; name it with --out"):
        begun_run(tiny_config())


def test_without_restarts_nothing_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(out=str(tmp_path / "run"))
    RunDirectory.create(tmp_path / "run", config.to_dict())
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    assert begun_run(config) is None
