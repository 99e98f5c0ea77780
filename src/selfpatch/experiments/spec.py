"""Specification of a study: a grid of recipes over seeds and the evaluations of each, read from YAML and checked.

::

    extends: common.yaml            # inherits from another file
    title: DINO against DINO + SelfPatch
    question: Does SelfPatch help?
    pretrain: [photos]              # folders, shards or lists, used together
    seeds: [0, 1, 2]
    settings: {recipe: samples, epochs: 30}         # as in a recipe, for all arms
    arms:
      DINO: {objective: none}
      DINO + SelfPatch: {objective: selfpatch}
      DINO, equal time: {objective: none, equal_time: DINO + SelfPatch}
    baselines: [untrained, "baseline:mean-colour:8"]
    evaluations:
      - segment: {data: camvid, method: linear}     # as in a suite, with the columns of the table
        columns: {mIoU: CamVid linear mIoU}
    over_time:                                      # evaluates the checkpoints that checkpoint.keep_every_epochs keeps
      - davis: {data: davis, resolution: 160}
        columns: {J&F-Mean: DAVIS J&F}
    pictures: davis/JPEGImages                      # images for the sheet of patch features
    sizes:                                          # overrides selected by --size
      cpu: {seeds: [0], settings: {epochs: 2}}

Mappings override one another key by key, lists as a whole. Paths are relative to the data folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from selfpatch.api.encoder import BASELINES
from selfpatch.config.parsing import parse_yaml
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import checked, unknown_name
from selfpatch.experiments.suite import read_entry
from selfpatch.experiments.suite_report import Entry
from selfpatch.methods.registry import METHODS, OBJECTIVES, find_objective

UNTRAINED = "untrained"
"""Baseline that stands for the networks of the arms at initialisation."""
KEYS = {
    "extends", "title", "question", "pretrain", "seeds", "settings", "arms", "reference", "baselines", "evaluations",
    "over_time", "pictures", "sizes",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A recipe of the grid.

    Attributes:
        name: name in the tables.
        config: settings of its run, without data, seed, device and folder, which the study sets.
        equal_time: name of another arm, whose training time this arm gets.
    """

    name: str
    config: RunConfig
    equal_time: str | None = None

    @property
    def slug(self) -> str:
        """Name for folders: `DINO + SelfPatch, k = 2` -> `dino-selfpatch-k-2`."""
        return "-".join(re.findall(r"\w+", self.name.lower()))


@dataclass(frozen=True)
class Measurement:
    """An evaluation and the column of the table for each of its metrics that is shown."""

    entry: Entry
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        title: title of the report.
        question: question that the study answers.
        pretrain: training data by the names that the file gives.
        seeds: seeds of every arm.
        arms: recipes.
        reference: name of the arm that the others are compared with.
        baselines: UNTRAINED, or baselines as `selfpatch.load` takes them.
        evaluations: evaluations of every network.
        over_time: evaluations of the kept checkpoints.
        pictures: images for the sheet of patch features, or None.
    """

    title: str
    question: str
    pretrain: Mapping[str, Path]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    reference: str
    baselines: tuple[str, ...]
    evaluations: tuple[Measurement, ...]
    over_time: tuple[Measurement, ...]
    pictures: Path | None

    def arm(self, name: str) -> Arm:
        """Return the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def read_study(path: str | Path, data: str | Path, size: str | None = None) -> Study:
    """Return the study of a file, after checking all of it.

    Args:
        path: the file.
        data: folder that its paths are relative to.
        size: one of its `sizes`. If None, no size is applied.

    Raises:
        ValueError: the file, the size or the data do not exist, or the file holds something unknown.
    """
    spec = _read(Path(path).expanduser(), ())
    sizes = _mapping(spec.pop("sizes", None), f"{path}: sizes")
    if size is not None and size not in sizes:
        raise ValueError(f"{path} has no size {size!r}; use one of: {', '.join(sizes) or '(it has none)'}")
    if size is not None:
        spec = _laid_over(spec, _mapping(sizes[size], f"{path}: size {size!r}"))
    for key in spec:
        if key not in KEYS:
            raise ValueError(f"{path}: {unknown_name(str(key), str(key), sorted(KEYS))}")
    return _study(spec, str(path), Path(data).expanduser())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the content of a file, laid over that of the files it extends."""
    if path.resolve() in above:
        raise ValueError(f"{path} extends itself, through {above[-1]}; leave one `extends` out")
    try:
        spec = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"cannot read the study {path} ({reason}); give a YAML file") from None
    below = spec.pop("extends", None)
    return spec if below is None else _laid_over(_read(path.parent / str(below), (*above, path.resolve())), spec)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return a value that must be a mapping with text keys, or an empty one for None."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; a mapping of names to values is needed")
    for key in value or {}:
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}, which is no text; quote it, or leave it out")
    return value or {}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` laid over `below`: mappings key by key, other values as a whole."""
    both = dict(below)
    for key, value in above.items():
        mappings = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = _laid_over(below[key], value) if mappings else value
    return both


def _study(spec: Mapping[str, Any], path: str, data: Path) -> Study:
    for key in ("title", "pretrain", "arms", "evaluations"):
        if not spec.get(key):
            raise ValueError(f"{path} has no {key}; a study needs title, pretrain, arms and evaluations")
    arms = _arms(spec["arms"], _mapping(spec.get("settings"), f"{path}: settings"), path)
    names = [arm.name for arm in arms]
    reference = str(spec.get("reference") or names[0])
    if reference not in names:
        raise ValueError(f"{path}: reference is {reference!r}, which is no arm; use one of: {', '.join(names)}")
    sources = spec["pretrain"] if isinstance(spec["pretrain"], list) else [spec["pretrain"]]
    pictures = spec.get("pictures")
    over_time = tuple(_measurements(spec.get("over_time") or (), data, f"{path}: over_time"))
    if over_time and not any(arm.config.checkpoint.keep_every_epochs for arm in arms):
        raise ValueError(f"{path}: over_time evaluates kept checkpoints; set checkpoint.keep_every_epochs")
    return Study(
        title=str(spec["title"]),
        question=" ".join(str(spec.get("question") or "").split()),
        pretrain={str(source): _existing(data, source, f"{path}: pretrain") for source in sources},
        seeds=_seeds(spec.get("seeds", [0]), path),
        arms=arms,
        reference=reference,
        baselines=_baselines(spec.get("baselines"), path),
        evaluations=tuple(_measurements(spec["evaluations"], data, f"{path}: evaluations")),
        over_time=over_time,
        pictures=None if pictures is None else _existing(data, pictures, f"{path}: pictures"),
    )


def _seeds(given: Any, path: str) -> tuple[int, ...]:
    seeds: tuple[int, ...] = checked(given, Annotated[tuple[int, ...], MinLen(1)], f"{path}: seeds")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{path}: seeds is {list(seeds)}; name each once, from 0 up")
    return seeds


def _baselines(given: Any, path: str) -> tuple[str, ...]:
    baselines: tuple[str, ...] = checked(given, tuple[str, ...], f"{path}: baselines") if given else ()
    known = re.compile(rf"{UNTRAINED}|baseline:({'|'.join(BASELINES)}):[1-9]\d*")
    for baseline in baselines:
        if not known.fullmatch(baseline) or baselines.count(baseline) > 1:
            names = ", ".join(f"baseline:{name}:P" for name in BASELINES)
            raise ValueError(f"{path}: the baseline {baseline!r} is unknown or there twice; use {UNTRAINED}, {names}")
    return baselines


def _existing(data: Path, name: Any, where: str) -> Path:
    path = data / str(name)
    if not path.exists():
        raise ValueError(f"{where}: there is no {path}; name the data folder with --data")
    return path


def _arms(given: Any, common: Mapping[str, Any], path: str) -> tuple[Arm, ...]:
    given = _mapping(given, f"{path}: arms")
    arms = tuple(_arm(name, settings, common, f"{path}: arm {name!r}") for name, settings in given.items())
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if not arm.slug or slugs.count(arm.slug) > 1:
            raise ValueError(f"{path}: the arm {arm.name!r} needs a name that differs from the others in its words")
        other = next((a for a in arms if a.name == arm.equal_time), None)
        if arm.equal_time is not None and (other is None or other.equal_time is not None):
            raise ValueError(f"{path}: arm {arm.name!r} has equal_time {arm.equal_time!r}, which is no arm with epochs")
    return arms


def _arm(name: str, arm_settings: Any, common: Mapping[str, Any], where: str) -> Arm:
    arm_settings = dict(_mapping(arm_settings, where))
    equal_time = arm_settings.pop("equal_time", None)
    settings = _laid_over(common, arm_settings)
    recipe = settings.pop("recipe", None)
    for key in ("data", "out", "seed", "device"):
        if key in settings:
            raise ValueError(f"{where} sets {key}, which the study sets; leave it out")
    if settings.get("channels", 3) != 3:
        raise ValueError(f"{where} has channels {settings['channels']!r}; the evaluations use 3; leave it out")
    try:
        base = RunConfig() if recipe is None else load_recipe(str(recipe))
        chosen: dict[str, Any] = {key: settings[key] for key in ("method", "objective", "model") if key in settings}
        base = base.override(chosen)
        for used in base.used:
            find_objective({**METHODS, **OBJECTIVES}, used, "method or objective")
        # The settings for all arms may include those of methods that this arm does not use.
        unused = {key for key in settings if key in {*METHODS, *OBJECTIVES} - {*base.used} and key not in arm_settings}
        config = base.override({k: v for k, v in settings.items() if k not in unused and k not in chosen})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Arm(name, config, None if equal_time is None else str(equal_time))


def _measurements(given: Any, data: Path, where: str) -> Iterator[Measurement]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"{where} is {given!r}; a list of evaluations is needed")
    seen: set[str] = set()
    for number, item in enumerate(given, start=1):
        columns = item.get("columns") if isinstance(item, Mapping) else None
        if not isinstance(columns, Mapping) or not columns:
            raise ValueError(f"{where}, entry {number}: give columns, a heading for each metric to show: mIoU: CamVid")
        entry = read_entry(number, {k: v for k, v in item.items() if k != "columns"}, f"{where}, entry {number}")
        entry = replace(entry, data=str(_existing(data, entry.data, f"{where}, entry {number}")))
        for column in columns.values():
            if not isinstance(column, str) or column in seen:
                raise ValueError(f"{where}: the column {column!r} is no text or there twice; give each its own heading")
            seen.add(column)
        yield Measurement(entry, {str(metric): str(column) for metric, column in columns.items()})
