"""What `import selfpatch` offers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import selfpatch
from selfpatch.config.parsing import nested
from selfpatch.core import distributed
from selfpatch.core.version import VERSION
from selfpatch.training import factory
from selfpatch.visualization.config import ShowConfig
from tests.helpers.command_line import TINY, write_davis, write_photos
from tests.helpers.tiny import tiny_config
from tests.helpers.workers import WorkerPool


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_functions_train_resume_load_evaluate_and_show(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 24)
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
    assert selfpatch.show(encoder, [photos / "000.png"], tmp_path / "pictures", resolution=48)[0].is_file()
    with pytest.raises(ValueError, match=r"epochs is 0; use a number above 0"):
        selfpatch.pretrain(data=str(photos), out=str(tmp_path / "none"), **(settings | {"epochs": 0}))


def trained_in_a_group(rank: int, photos: Path, out: Path) -> tuple[int, int]:
    """The number of evaluators that a process makes, and of the processes of its group after a training."""
    made: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        make = factory.make_online_evaluator
        patch.setattr(factory, "make_online_evaluator", lambda *args: made.append(args) or make(*args))
        config = tiny_config(data=str(photos), out=str(out), epochs=1, device="cpu", loader={"workers": 0})
        assert (selfpatch.pretrain(config) / "exported" / "backbone.safetensors").is_file() or rank
    return len(made), distributed.world_size()


@pytest.mark.slow
def test_one_process_of_a_group_measures_and_the_group_stays(pool: WorkerPool, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12, size=32)
    assert pool.run(trained_in_a_group, photos, tmp_path / "run") == [(1, 2), (0, 2)]


def test_the_package_lists_public_names_only() -> None:
    assert sorted(dir(selfpatch)) == sorted([*selfpatch.__all__, "__version__"])
    assert all(callable(getattr(selfpatch, name)) for name in selfpatch.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        selfpatch.fly  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "selfpatch.core.version.VERSION"}
    assert selfpatch.__version__ == VERSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": ShowConfig()}, "config is a ShowConfig; davis takes a DAVISConfig"),
        ({"radius": -1}, "davis.radius is -1; use 0 or more"),
        ({"zoom": 1}, "davis.zoom is not a setting; known are: limit, precision, debias, block"),
    ],
)
def test_wrong_settings_of_an_evaluation_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selfpatch.evaluate("davis", "baseline:mean-colour:8", "nowhere", **change)
