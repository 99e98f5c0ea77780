"""Runs that torchrun starts again: the same command continues the run that it began."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from selfpatch.api.short_runs import PHASES
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import SAMPLES, RunConfig
from selfpatch.config.schema import flat
from selfpatch.core import distributed
from selfpatch.core.torchrun import max_restarts
from selfpatch.data.sources.remote import is_url

RESOLVED = (
    "data", "out", "epochs", "minutes", "loss_weights", "loader.render", *(f"optimizer.{name}" for name in PHASES),
)  # fmt: skip
"""Settings that a run records in another form than the command gives them."""
FREE = (
    "device", "precision", "compile", "packing", "parallel", "activation_checkpointing", "checkpoint", "logging",
)  # fmt: skip
"""Settings and sections that another start may change, as they decide neither samples nor schedule; so is the number of
loader processes."""


def begun_run(config: RunConfig) -> tuple[RunDirectory, RunConfig] | None:
    """Return the run that an earlier start of the same command began, if torchrun may restart it, and its settings.

    Those that another start may change are of this one.

    Raises:
        ValueError: the directory is not named, so that a restart could not find it, or holds a run of other settings.
    """
    if not max_restarts():
        return None
    if config.out is None:
        raise ValueError(
            "torchrun may start this run again (--max-restarts), which then has to find its directory; name it with "
            "--out"
        )
    path = Path(config.out).expanduser().resolve()
    (begun,) = distributed.any_rank(distributed.is_main_process() and (path / "config.yaml").is_file())
    if not begun:
        return None
    run = RunDirectory.open(path)
    saved = RunConfig.from_saved(run.settings, run.settings_file)
    here, there = _deciding(config), _deciding(saved)
    different = [name for name in dict.fromkeys([*there, *here]) if here.get(name) != there.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{config.out} already holds a run, with {name} {there.get(name)!r} and not {here.get(name)!r}; name "
            "another folder with --out, or give the settings of that run to continue it"
        )
    chosen = {name: getattr(config, name) for name in FREE}
    return run, replace(saved, **chosen, loader=replace(saved.loader, workers=config.loader.workers))


def resolved_data(data: str) -> str:
    """Return data as a run records them: a path in full, samples and URLs by their names."""
    is_name = data == SAMPLES or is_url(data)
    return data if is_name else str(Path(data).expanduser().resolve())


def _deciding(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide a training, by dotted name."""
    left_out = {*FREE, *RESOLVED, "loader.workers"}
    values = flat(config.to_dict())
    kept = {name: value for name, value in values.items() if not {name, name.partition(".")[0]} & left_out}
    return kept | {"data": resolved_data(config.data)}
