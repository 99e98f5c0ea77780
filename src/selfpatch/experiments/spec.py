"""What a study is: a grid of recipes over seeds, and what each is measured by; read from YAML and checked at once.

::

    extends: common.yaml            # another file, laid under this one
    title: DINO against DINO + SelfPatch
    question: Does SelfPatch help?
    pretrain: [photos]              # folders, shards or lists, all of them together
    seeds: [0, 1, 2]
    settings: {recipe: samples, epochs: 30}         # of every arm, as a recipe writes them
    arms:
      DINO: {objective: none}
      DINO + SelfPatch: {objective: selfpatch}
      DINO, equal time: {objective: none, equal_time: DINO + SelfPatch}
    floors: [untrained, "baseline:mean-colour:8"]
    evaluations:
      - segment: {data: camvid, method: linear}     # as in a suite, and which of its metrics the table shows
        columns: {mIoU: CamVid linear mIoU}
    over_time:                                      # the same, of what checkpoint.keep_every_epochs keeps
      - davis: {data: davis, resolution: 160}
        columns: {J&F-Mean: DAVIS J&F}
    pictures: davis/JPEGImages                      # images for the sheet of patch features
    sizes:                                          # what --size lays over all of the above
      cpu: {seeds: [0], settings: {epochs: 2}}

Mappings are laid over one another key by key, lists replace one another. Paths are relative to the folder of all data.
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
"""The floor that stands for the arms' networks as their training begins."""
KEYS = {
    "extends", "title", "question", "pretrain", "seeds", "settings", "arms", "reference", "floors", "evaluations",
    "over_time", "pictures", "sizes",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A recipe of the grid.

    Attributes:
        config: its run, but for data, seed, device and folder, which are the study's.
        equal_time: another arm; this one is trained for as long as that one takes.
    """

    name: str
    config: RunConfig
    equal_time: str | None = None

    @property
    def slug(self) -> str:
        """`DINO + SelfPatch, k = 2` -> `dino-selfpatch-k-2`."""
        return "-".join(re.findall(r"\w+", self.name.lower()))


@dataclass(frozen=True)
class Measurement:
    """An evaluation, and the columns of the table that its metrics are shown in, by metric."""

    entry: Entry
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Study:
    """Attributes:
    pretrain: what is trained on, by the names that the file gives.
    reference: the arm that the others are compared with.
    floors: UNTRAINED, or baselines as `selfpatch.load` takes them.
    over_time: measured of the checkpoints that are kept.
    pictures: images for the sheet of patch features.
    """

    title: str
    question: str
    pretrain: Mapping[str, Path]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    reference: str
    floors: tuple[str, ...]
    evaluations: tuple[Measurement, ...]
    over_time: tuple[Measurement, ...]
    pictures: Path | None

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def read_study(path: str | Path, data: str | Path, size: str | None = None) -> Study:
    """A study file, all of it checked.

    Args:
        path: the file.
        data: the folder that its paths are relative to.
        size: one of its `sizes`; None: none of them.

    Raises:
        ValueError: there is no such file, size or data, or something in it is unknown; one sentence says what.
    """
    plan = _read(Path(path).expanduser(), ())
    sizes = _mapping(plan.pop("sizes", None), f"{path}: sizes")
    if size is not None and size not in sizes:
        raise ValueError(f"{path} has no size {size!r}; use one of: {', '.join(sizes) or '(it has none)'}")
    if size is not None:
        plan = _laid_over(plan, _mapping(sizes[size], f"{path}: size {size!r}"))
    for key in plan:
        if key not in KEYS:
            raise ValueError(f"{path}: {unknown_name(str(key), str(key), sorted(KEYS))}")
    return _study(plan, str(path), Path(data).expanduser())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file over those that it extends."""
    if path.resolve() in above:
        raise ValueError(f"{path} extends itself, by way of {above[-1]}; leave one `extends` out")
    try:
        plan = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"cannot read the study {path} ({reason}); give a YAML file") from None
    below = plan.pop("extends", None)
    return plan if below is None else _laid_over(_read(path.parent / str(below), (*above, path.resolve())), plan)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Nothing is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; a mapping of names to values is needed")
    for key in value or {}:
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}, which is no text; quote it, or leave it out")
    return value or {}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; anything else as it is above."""
    both = dict(below)
    for key, value in above.items():
        mappings = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = _laid_over(below[key], value) if mappings else value
    return both


def _study(plan: Mapping[str, Any], path: str, data: Path) -> Study:
    for key in ("title", "pretrain", "arms", "evaluations"):
        if not plan.get(key):
            raise ValueError(f"{path} has no {key}; a study needs title, pretrain, arms and evaluations")
    arms = _arms(plan["arms"], _mapping(plan.get("settings"), f"{path}: settings"), path)
    names = [arm.name for arm in arms]
    reference = str(plan.get("reference") or names[0])
    if reference not in names:
        raise ValueError(f"{path}: reference is {reference!r}, which is no arm; use one of: {', '.join(names)}")
    sources = plan["pretrain"] if isinstance(plan["pretrain"], list) else [plan["pretrain"]]
    pictures = plan.get("pictures")
    over_time = tuple(_measurements(plan.get("over_time") or (), data, f"{path}: over_time"))
    if over_time and not any(arm.config.checkpoint.keep_every_epochs for arm in arms):
        raise ValueError(f"{path}: over_time measures checkpoints that are kept; set checkpoint.keep_every_epochs")
    return Study(
        title=str(plan["title"]),
        question=" ".join(str(plan.get("question") or "").split()),
        pretrain={str(source): _existing(data, source, f"{path}: pretrain") for source in sources},
        seeds=_seeds(plan.get("seeds", [0]), path),
        arms=arms,
        reference=reference,
        floors=_floors(plan.get("floors"), path),
        evaluations=tuple(_measurements(plan["evaluations"], data, f"{path}: evaluations")),
        over_time=over_time,
        pictures=None if pictures is None else _existing(data, pictures, f"{path}: pictures"),
    )


def _seeds(given: Any, path: str) -> tuple[int, ...]:
    seeds: tuple[int, ...] = checked(given, Annotated[tuple[int, ...], MinLen(1)], f"{path}: seeds")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{path}: seeds is {list(seeds)}; name each once, from 0 up")
    return seeds


def _floors(given: Any, path: str) -> tuple[str, ...]:
    floors: tuple[str, ...] = checked(given, tuple[str, ...], f"{path}: floors") if given else ()
    known = re.compile(rf"{UNTRAINED}|baseline:({'|'.join(BASELINES)}):[1-9]\d*")
    for floor in floors:
        if not known.fullmatch(floor) or floors.count(floor) > 1:
            names = ", ".join(f"baseline:{name}:P" for name in BASELINES)
            raise ValueError(f"{path}: the floor {floor!r} is unknown or there twice; use {UNTRAINED}, {names}")
    return floors


def _existing(data: Path, name: Any, where: str) -> Path:
    path = data / str(name)
    if not path.exists():
        raise ValueError(f"{where}: there is no {path}; say with --data where the folder of all data is")
    return path


def _arms(given: Any, common: Mapping[str, Any], path: str) -> tuple[Arm, ...]:
    given = _mapping(given, f"{path}: arms")
    arms = tuple(_arm(name, own, common, f"{path}: arm {name!r}") for name, own in given.items())
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if not arm.slug or slugs.count(arm.slug) > 1:
            raise ValueError(f"{path}: the arm {arm.name!r} needs a name that differs from others in its words")
        other = next((a for a in arms if a.name == arm.equal_time), None)
        if arm.equal_time is not None and (other is None or other.equal_time is not None):
            raise ValueError(f"{path}: arm {arm.name!r} has equal_time {arm.equal_time!r}, which is no arm with epochs")
    return arms


def _arm(name: str, own: Any, common: Mapping[str, Any], where: str) -> Arm:
    own = dict(_mapping(own, where))
    equal_time = own.pop("equal_time", None)
    settings = _laid_over(common, own)
    recipe = settings.pop("recipe", None)
    for key in ("data", "out", "seed", "device"):
        if key in settings:
            raise ValueError(f"{where} sets {key}, which is the study's to set; leave it out")
    if settings.get("channels", 3) != 3:
        raise ValueError(f"{where} has channels {settings['channels']!r}; what is evaluated here has 3, leave it out")
    try:
        base = RunConfig() if recipe is None else load_recipe(str(recipe))
        chosen: dict[str, Any] = {key: settings[key] for key in ("method", "objective", "model") if key in settings}
        base = base.override(chosen)
        for used in base.used:
            find_objective({**METHODS, **OBJECTIVES}, used, "method or objective")
        # Settings that all arms have in common may be those of methods that this one does not use.
        unused = {key for key in settings if key in {*METHODS, *OBJECTIVES} - {*base.used} and key not in own}
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
                raise ValueError(
                    f"{where}: the column {column!r} is no text or there twice; give each a heading of its own"
                )
            seen.add(column)
        yield Measurement(entry, {str(metric): str(column) for metric, column in columns.items()})
