"""The run directory: what it refuses, and what is left of it after a kill, a full disk and damaged bytes."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from selfpatch.checkpoints.run_dir import RunDirectory, write_atomically
from selfpatch.config.run import RunConfig
from selfpatch.core.types import Views


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", RunConfig())


def names(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def saved_step(run: RunDirectory) -> int:
    state = run.load_checkpoint()
    assert state is not None
    return state["step"]


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Writing more than so many bytes into a file fails as on a full disk, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestCreateAndOpen:
    def test_settings_come_back(self, tmp_path: Path) -> None:
        config = RunConfig().override(
            {
                "method": "ibot",
                "optimizer": {"min_lr": 1e-7},
                "crops": {"global_scale": [0.4, 1]},
                "loss_weights": {"patch": 0.1},
                "selfpatch": {"k": 2, "border": "clip"},
                "data": "Fotos/März",
            }
        )
        RunDirectory.create(tmp_path / "a" / "run", config)
        assert RunDirectory.open(tmp_path / "a" / "run").config == config

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        assert RunDirectory.create(tmp_path, RunConfig()).path == tmp_path

    def test_a_run_is_refused_and_resume_named(self, run: RunDirectory) -> None:
        before = files_below(run.path)
        with pytest.raises(ValueError, match=f"selfpatch resume {run.path}"):
            RunDirectory.create(run.path, RunConfig(seed=1))
        assert files_below(run.path) == before

    def test_a_folder_with_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").touch()
        with pytest.raises(ValueError, match=r"already has files in it; name another folder with --out"):
            RunDirectory.create(tmp_path, RunConfig())
        assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"is a file; name a folder with --out"):
            RunDirectory.create(tmp_path / "file", RunConfig())

    @pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
    def test_where_nothing_can_be_written_is_refused(self, tmp_path: Path, folder: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"cannot write to .*/run \(.+\); name another folder with --out"):
            RunDirectory.create(tmp_path / folder, RunConfig())

    def test_only_a_run_opens(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(ValueError, match="is no run"):
                RunDirectory.open(folder)

    @pytest.mark.parametrize("settings", ["a: [", "- 1", "epochs: many", "epocks: 3"])
    def test_unreadable_settings_are_named(self, run: RunDirectory, settings: str) -> None:
        (run.path / "config.yaml").write_text(settings)
        with pytest.raises(ValueError, match=r"settings in .*config.yaml cannot be read"):
            RunDirectory.open(run.path)


class TestCheckpoints:
    def test_state_comes_back_exactly(self, run: RunDirectory) -> None:
        assert run.load_checkpoint() is None
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
        path = run.save_checkpoint(state, step=7, keep=1)
        assert path == run.checkpoints / "step-00000007.pt"
        loaded = RunDirectory.open(run.path).load_checkpoint()
        assert loaded is not None
        torch.testing.assert_close(loaded, state, rtol=0, atol=0)
        plain = {"step": 8, "nested": {"names": ["a", "b"], "none": None, "pair": (1, 0.5)}}
        run.save_checkpoint(plain, step=8, keep=1)
        assert run.load_checkpoint() == plain

    def test_the_most_recent_and_the_kept_stay(self, run: RunDirectory) -> None:
        for step in (5, 10, 15, 20, 25):
            run.save_checkpoint({"step": step}, step=step, keep=2, keep_forever=step == 10)
        assert names(run) == ["step-00000010-kept.pt", "step-00000020.pt", "step-00000025.pt"]
        assert saved_step(run) == 25
        run.save_checkpoint({"step": 123_456_789}, step=123_456_789, keep=1)
        assert saved_step(run) == 123_456_789

    def test_a_kept_one_is_loaded_too(self, run: RunDirectory) -> None:
        run.save_checkpoint({"step": 5}, step=5, keep=1)
        run.save_checkpoint({"step": 6}, step=6, keep=1, keep_forever=True)
        assert saved_step(run) == 6

    def test_a_damaged_one_is_passed_over_and_does_not_push_out_good_ones(self, run: RunDirectory) -> None:
        for step in (1, 2):
            run.save_checkpoint({"step": step}, step=step, keep=2)
        newest = run.checkpoints / "step-00000002.pt"
        newest.write_bytes(newest.read_bytes()[:-100])
        with pytest.warns(UserWarning, match=r"step-00000002.pt cannot be read and is passed over"):
            assert saved_step(run) == 1
        run.save_checkpoint({"step": 1, "again": True}, step=1, keep=1)
        assert names(run) == ["step-00000001.pt"]
        assert saved_step(run) == 1

    def test_no_damage_to_any_byte_is_ever_loaded(self, run: RunDirectory) -> None:
        """torch.load by itself takes changed tensors for good."""
        weights = {step: torch.full((200,), float(step)) for step in (1, 2)}
        for step in (1, 2):
            run.save_checkpoint({"step": step, "weights": weights[step]}, step=step, keep=2)
        newest = run.checkpoints / "step-00000002.pt"
        intact = newest.read_bytes()
        passed_over = 0
        for place in range(0, len(intact), 13):
            newest.write_bytes(intact[:place] + bytes([intact[place] ^ 0xFF]) + intact[place + 1 :])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = run.load_checkpoint()
            assert state is not None
            assert torch.equal(state["weights"], weights[state["step"]])
            passed_over += state["step"] == 1
        assert passed_over > 50  # the rest hit padding between the archive's members

    def test_all_damaged_is_an_error_not_a_fresh_start(self, run: RunDirectory) -> None:
        run.save_checkpoint({"step": 1}, step=1, keep=1).write_bytes(b"")
        with pytest.warns(UserWarning, match="passed over"), pytest.raises(ValueError, match="no checkpoint of 1"):
            run.load_checkpoint()

    def test_nothing_is_unpickled(self, run: RunDirectory) -> None:
        run.save_checkpoint({"step": 1}, step=1, keep=3)
        run.save_checkpoint({"step": 2, "code": RunConfig}, step=2, keep=3)
        with pytest.warns(UserWarning, match="step-00000002"):
            assert saved_step(run) == 1

    def test_a_full_disk_leaves_the_earlier_ones(self, run: RunDirectory) -> None:
        run.save_checkpoint({"step": 1}, step=1, keep=1)
        before = files_below(run.path)
        big = {"step": 2, "weights": torch.zeros(1 << 20)}
        with largest_file(1 << 20), pytest.raises(OSError, match=r"cannot write .*step-00000002.pt") as caught:
            run.save_checkpoint(big, step=2, keep=1)
        assert caught.value.errno == errno.EFBIG
        assert files_below(run.path) == before
        assert saved_step(run) == 1

    @pytest.mark.parametrize("moment", ["any", "before the renaming"])
    def test_a_kill_leaves_the_newest_one_intact(self, tmp_path: Path, moment: str) -> None:
        script = """
import os, signal, sys, torch
from selfpatch.config.run import RunConfig
from selfpatch.checkpoints.run_dir import RunDirectory
run = RunDirectory.create(sys.argv[1], RunConfig())
replace = os.replace
def kill_before(source, target):
    if "step-00000007" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
if sys.argv[2] == "before the renaming":
    os.replace = kill_before
for step in range(1, 100_000):
    run.save_checkpoint({"step": step, "weights": torch.full((500_000,), float(step))}, step=step, keep=2)
    print(step, flush=True)
"""
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "run"), moment], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        announced = 0
        for line in child.stdout:
            announced = int(line)
            if announced == 20:
                os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        run = RunDirectory.open(tmp_path / "run")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = run.load_checkpoint()
        assert state is not None
        assert state["step"] == 6 if moment != "any" else state["step"] >= announced >= 20
        assert torch.equal(state["weights"], torch.full((500_000,), float(state["step"])))
        strays = list(run.checkpoints.glob(".*"))
        assert strays or moment == "any"
        run.rewind(state["step"])
        assert not list(run.checkpoints.glob(".*"))
        assert saved_step(run) == state["step"]


class TestMetrics:
    def test_rows_come_back_as_valid_json(self, run: RunDirectory) -> None:
        run.record({"step": 1, "loss": 0.1, "lr": 1e-9, "note": "größer"})
        run.record({"step": 2, "loss": math.nan, "grad_norm": -math.inf})
        lines = (run.path / "metrics.jsonl").read_text().splitlines()

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        assert [json.loads(line, parse_constant=refuse) for line in lines] == run.rows()
        assert run.rows() == [
            {"step": 1, "loss": 0.1, "lr": 1e-9, "note": "größer"},
            {"step": 2, "loss": None, "grad_norm": None},
        ]

    def test_rewind_drops_what_comes_again(self, run: RunDirectory) -> None:
        assert run.rows() == []
        for step in (0, 10, 20, 20, 30):
            run.record({"step": step, "loss": 1 / (step + 3)})
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 35, "lo')
        run.close()
        resumed = RunDirectory.open(run.path)
        assert [row["step"] for row in resumed.rows()] == [0, 10, 20, 20, 30]
        resumed.rewind(20)
        resumed.record({"step": 20, "loss": 5.0})
        resumed.close()
        assert resumed.rows() == [{"step": 0, "loss": 1 / 3}, {"step": 10, "loss": 1 / 13}, {"step": 20, "loss": 5.0}]
        assert (run.path / "metrics.jsonl").read_text().endswith("}\n")

    def test_tensorboard_shows_the_rewound_run(self, run: RunDirectory) -> None:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        for step in (10, 20, 30):
            run.record({"step": step, "loss": float(step), "note": "text", "missing": None})
        run.close()
        resumed = RunDirectory.open(run.path)
        resumed.rewind(20)
        resumed.record({"step": 20, "loss": 7.0})
        resumed.close()
        events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
        assert events.Tags()["scalars"] == ["loss"]
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 10.0), (20, 7.0)]

    def test_training_goes_on_without_tensorboard(self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.warns(UserWarning, match="no TensorBoard events"):
            run.record({"step": 1, "loss": 1.0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run.record({"step": 2, "loss": 1.0})
            run.close()
        assert len(run.rows()) == 2


class TestWhatElseIsLeft:
    def test_export(self, run: RunDirectory) -> None:
        qkv = torch.randn(6, 4)
        path = run.export({"q": qkv[:2], "k": qkv[2:4], "transposed": qkv.T}, {"model": "vit_tiny"})
        assert path == run.exported / "backbone.safetensors"
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"model": "vit_tiny"}
            assert torch.equal(file.get_tensor("k"), qkv[2:4])
            assert torch.equal(file.get_tensor("transposed"), qkv.T)

    def test_a_failed_step_can_be_replayed(self, run: RunDirectory) -> None:
        batch = Views(
            global_crops=torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8),
            local_crops=None,
            boxes=torch.rand(2, 3, 5),
            samples=torch.arange(3),
        )
        state = {"weights": torch.tensor([math.nan, 1.0])}
        path = run.save_failure([batch, batch], state, "loss is nan", step=12)
        assert path == run.path / "failed" / "step-00000012.pt"
        saved = torch.load(path, weights_only=True)
        assert (saved["step"], saved["message"], len(saved["batches"])) == (12, "loss is nan", 2)
        again = Views(**saved["batches"][0])
        assert torch.equal(again.global_crops, batch.global_crops)
        assert torch.equal(again.boxes, batch.boxes)
        assert again.local_crops is None
        torch.testing.assert_close(saved["state"], state, equal_nan=True)

    def test_skipped_files_are_noted_once(self, run: RunDirectory) -> None:
        skipped = run.path / "skipped.txt"
        run.note_skipped({})
        assert not skipped.exists()
        run.note_skipped({"a.jpg": "truncated\nfile", "tab\there.jpg": "empty"})
        run.note_skipped({"a.jpg": "truncated\nfile", "b\udcff.jpg": "no image"})
        resumed = RunDirectory.open(run.path)
        resumed.note_skipped(
            {"b\udcff.jpg": "no image", "a.jpg": "other reason", "c.jpg": "empty", "tab\there.jpg": ""}
        )
        assert skipped.read_bytes() == (
            b"a.jpg\ttruncated file\ntab\\there.jpg\tempty\nb\xff.jpg\tno image\nc.jpg\tempty\n"
        )


class TestWriteAtomically:
    def test_text_and_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file"
        write_atomically(path, "größer\n")
        assert path.read_bytes() == "größer\n".encode()
        write_atomically(path, b"\xff")
        assert path.read_bytes() == b"\xff"

    def test_the_old_file_survives_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomically(path, "old")
        with largest_file(1000), pytest.raises(OSError, match="what was written before is intact"):
            write_atomically(path, b"n" * 100_000)
        assert files_below(tmp_path) == {path: b"old"}
