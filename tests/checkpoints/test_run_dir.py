"""The run directory: what it refuses, failed steps and skipped files."""

from __future__ import annotations

import errno
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.core.signals import Terminated, raising_signals
from selfpatch.core.types import Views
from tests.helpers.disk import files_below


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", {})


def test_settings_come_back(tmp_path: Path) -> None:
    settings = {"method": "ibot", "crops": {"global_scale": [0.4, 1]}, "selfpatch": {"k": 2}, "data": "Fotos/März"}
    RunDirectory.create(tmp_path / "a" / "run", settings)
    assert RunDirectory.open(tmp_path / "a" / "run").settings == settings


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, {}).path == tmp_path


def test_a_run_is_refused_and_resume_named(run: RunDirectory) -> None:
    before = files_below(run.path)
    with pytest.raises(ValueError, match=f"selfpatch resume {run.path}"):
        RunDirectory.create(run.path, {"seed": 1})
    assert files_below(run.path) == before


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"already has files in it; name another folder with --out"):
        RunDirectory.create(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a file; name a folder with --out"):
        RunDirectory.create(tmp_path / "file", {})


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_where_nothing_can_be_written_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*/run \(.+\); name another folder with --out"):
        RunDirectory.create(tmp_path / folder, {})


def test_only_a_run_opens(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="is no run"):
            RunDirectory.open(folder)


@pytest.mark.parametrize("settings", ["a: [", "- 1"])
def test_unreadable_settings_are_named(run: RunDirectory, settings: str) -> None:
    (run.path / "config.yaml").write_text(settings)
    with pytest.raises(ValueError, match=r"settings in .*config.yaml cannot be read"):
        RunDirectory.open(run.path)


def test_a_failed_step_can_be_replayed(run: RunDirectory) -> None:
    batch = Views(
        global_crops=torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8),
        local_crops=None,
        boxes=torch.rand(2, 3, 5),
        samples=torch.arange(3),
    )
    state = {"weights": torch.tensor([math.nan, 1.0])}
    path = run.save_failed_step([batch, batch], state, "loss is nan", step=12)
    assert path == run.path / "failed" / "step-00000012.pt"
    saved = torch.load(path, weights_only=True)
    assert (saved["step"], saved["message"], len(saved["batches"])) == (12, "loss is nan", 2)
    again = Views(**saved["batches"][0])
    assert torch.equal(again.global_crops, batch.global_crops)
    assert torch.equal(again.boxes, batch.boxes)
    assert again.local_crops is None
    torch.testing.assert_close(saved["state"], state, equal_nan=True)


def test_skipped_files_are_noted_once(run: RunDirectory) -> None:
    skipped = run.path / "skipped.txt"
    run.note_skipped({})
    assert not skipped.exists()
    run.note_skipped({"a.jpg": "truncated\nfile", "tab\there.jpg": "empty"})
    run.note_skipped({"a.jpg": "truncated\nfile", "b\udcff.jpg": "no image"})
    resumed = RunDirectory.open(run.path)
    resumed.note_skipped({"b\udcff.jpg": "no image", "a.jpg": "other reason", "c.jpg": "empty", "tab\there.jpg": ""})
    assert skipped.read_bytes() == (
        b"a.jpg\ttruncated file\ntab\\there.jpg\tempty\nb\xff.jpg\tno image\nc.jpg\tempty\n"
    )


@pytest.mark.parametrize("existed", [False, True], ids=["new", "empty"])
def test_a_discarded_run_blocks_no_next_try(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "run"
    if existed:
        (tmp_path / "real").mkdir()
        folder.symlink_to("real")
    run = RunDirectory.create(folder, {"seed": 1})
    assert not run.can_be_resumed
    run.discard()
    assert folder.is_symlink() == folder.exists() == existed
    RunDirectory.create(folder, {"seed": 2})


def test_a_signal_waits_until_a_run_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def signal_and_unlink(path: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        unlink(path, **options)

    run = RunDirectory.create(tmp_path / "run", {})
    monkeypatch.setattr(Path, "unlink", signal_and_unlink)
    with raising_signals(), pytest.raises(Terminated):
        run.discard()
    assert not run.path.exists()


def test_a_run_in_the_present_folder_is_discarded_but_not_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RunDirectory.create(".", {}).discard()
    assert list(Path.cwd().iterdir()) == []


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def full(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "checkpoints":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ValueError, match="No space left on device"):
        RunDirectory.create(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_run_is_written_by_one_process(run: RunDirectory) -> None:
    refused = pytest.raises(ValueError, match=r"another process \(pid .*\) writes to .*; wait until it ends")
    with run.held(), refused, run.held():
        pass
    assert not (run.path / ".lock").exists()


def test_names_that_a_shell_would_split_are_quoted(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "my run", {})
    with pytest.raises(ValueError, match=r"use `selfpatch resume '.*/my run'`, or name another --out"):
        RunDirectory.create(tmp_path / "my run", {})
