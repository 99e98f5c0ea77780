"""Choice of the renderer: resolved when a run begins, recorded, and kept when it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import selfpatch
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.parsing import nested
from selfpatch.config.run import RunConfig
from selfpatch.data.augment.backends import choose_backend
from selfpatch.data.augment.opencv import fast_rendering_available
from selfpatch.training.factory import with_renderer
from tests.helpers.command_line import TINY, differences, final_state, write_photos

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 22)  # 5 steps of 4 an epoch


def pretrain(photos: Path, out: Path, **loader: Any) -> Path:
    options = [(name.removeprefix("--"), value) for name, value in zip(TINY[::2], TINY[1::2], strict=True)]
    settings = nested(options)
    settings["loader"] |= {"workers": 0, **loader}
    every = {"every_steps": 3, "keep": 9}
    return selfpatch.pretrain(data=str(photos), out=str(out), epochs=2, checkpoint=every, **settings)


def set_renderer(run: Path, renderer: str | None) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["loader"]["render"] = renderer
    if renderer is None:
        del settings["loader"]["render"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def restart(run: Path, out: Path, *, step: int) -> Path:
    """Copy a run as it was after a step."""
    shutil.copytree(run, out)
    for checkpoint in (out / "checkpoints").iterdir():
        if int(checkpoint.stem.split("-")[1]) > step:
            checkpoint.unlink()
    return out


@pytest.mark.slow
def test_a_run_records_the_renderer_that_auto_chose(photos: Path, tmp_path: Path) -> None:
    run = pretrain(photos, tmp_path / "run")
    expected = "fast" if fast_rendering_available() else "plain"
    assert yaml.safe_load((run / "config.yaml").read_text())["loader"]["render"] == expected


@pytest.mark.slow
def test_a_run_that_the_device_renders_resumes_to_the_last_bit(photos: Path, tmp_path: Path) -> None:
    run = pretrain(photos, tmp_path / "run", render="device", max_pixels=1500)
    assert yaml.safe_load((run / "config.yaml").read_text())["loader"]["render"] == "device"
    again = selfpatch.resume(restart(run, tmp_path / "again", step=3), workers=2)
    assert differences(final_state(again), final_state(run)) == []
    otherwise = restart(run, tmp_path / "otherwise", step=3)
    set_renderer(otherwise, "plain")
    assert differences(final_state(selfpatch.resume(otherwise)), final_state(run)) != []


@pytest.mark.slow
def test_a_run_without_a_recorded_renderer_resumes_with_plain(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain(photos, tmp_path / "run", render="plain")
    old = restart(run, tmp_path / "old", step=6)
    set_renderer(old, None)
    begun = RunDirectory.open(old)
    assert RunConfig.from_saved(begun.settings, begun.settings_file).loader.render == "plain"
    monkeypatch.setattr("selfpatch.data.augment.backends.fast_rendering_available", lambda: True)
    assert differences(final_state(selfpatch.resume(old)), final_state(run)) == []


@pytest.mark.slow
def test_a_run_does_not_resume_without_its_renderer(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain(photos, tmp_path / "run", render="plain")
    set_renderer(run, "fast")
    monkeypatch.setattr("selfpatch.data.augment.backends.fast_rendering_available", lambda: False)
    with pytest.raises(ValueError, match=r"loader.render is 'fast', but OpenCV is not installed"):
        selfpatch.resume(run)


@pytest.mark.parametrize("renderer", ["fast", "device"])
def test_other_channels_are_rendered_plainly(renderer: str) -> None:
    config = RunConfig().override({"data": "tiles", "channels": 5})
    assert with_renderer(config, CPU).loader.render == "plain"
    with pytest.raises(ValueError, match=f"loader.render is '{renderer}', which is for images of 3 channels, but chan"):
        config.override({"loader": {"render": renderer}})


def test_auto_chooses_the_fastest_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in [(True, "fast"), (False, "plain")]:
        monkeypatch.setattr("selfpatch.data.augment.backends.fast_rendering_available", lambda there=there: there)
        assert choose_backend("auto", device_type="cpu", channels=3) == expected
        assert choose_backend("auto", device_type="mps", channels=3) == expected
        assert choose_backend("auto", device_type="cuda", channels=3) == "device"
        assert choose_backend("auto", device_type="cuda", channels=5) == "plain"
        assert choose_backend("device", device_type="cpu", channels=3) == "device"
        assert choose_backend("plain", device_type="cuda", channels=3) == "plain"
    message = r"loader.render is 'fast', but OpenCV is not installed; run `pip install 'selfpatch\[fast\]'`, or use"
    with pytest.raises(ValueError, match=message):
        choose_backend("fast", device_type="cpu", channels=3)


def test_invalid_settings_of_the_renderer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loader.render is 'gpu'; use one of: auto, plain, fast, device"):
        RunConfig().override({"loader": {"render": "gpu"}})
    with pytest.raises(ValueError, match=r"loader.max_pixels is -1; use 0 or more"):
        RunConfig().override({"loader": {"max_pixels": -1}})
