"""Specification of a study: a grid of recipes over seeds and the evaluations of each, read from YAML and checked.

::

    extends: common.yaml            # inherits from another file
    title: DINO against DINO + SelfPatch
    question: Does SelfPatch help?
    pretrain: [photos]              # folders, shards or lists, used together; an arm may name its own
    seeds: [0, 1, 2]                # an arm may name its own
    settings: {recipe: small-cpu, epochs: 30}       # as in a recipe, for all arms
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
    sizes:                                          # overrides selected by --size; an arm that is null is left out
      cpu: {seeds: [0], settings: {epochs: 2}, arms: {"DINO, equal time": null}}

Mappings override one another key by key, lists as a whole. Paths are relative to the data folder.

Arms with `init` start from weights, and arms with `teacher` learn from them: a path, timm:NAME, hf:OWNER/NAME, or
`weights` for those that the command names with `--weights`.
The baseline `as is` stands for these weights. The arms are then compared with it, unless `reference` names an arm.
"""

import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import StrictStr

from selfpatch.api.encoder import BASELINES
from selfpatch.checkpoints.names import HUB, TIMM
from selfpatch.config.parsing import parse_yaml
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import Seed, checked, settings
from selfpatch.core.text_files import read_text
from selfpatch.experiments.entries import Entry, read_entry
from selfpatch.methods.registry import METHODS, OBJECTIVES, find_objective

UNTRAINED = "untrained"
"""Baseline that stands for the networks of the arms with random weights."""
AS_IS = "as is"
"""Baseline that stands for the weights that the arms start from, or learn from as `teacher`."""
FROM_OPTION = "weights"
"""Value of an arm's `init` or `teacher` that stands for the weights that the command names."""
Values = dict[StrictStr, Any]


@settings
class Arm:
    """A recipe of the grid."""

    name: str
    """Name in the tables."""
    config: RunConfig
    """Settings of its run, without data, seed, device and folder, which the study sets."""
    pretrain: dict[str, Path]
    """Training data by the names that the file gives."""
    seeds: Annotated[tuple[Seed, ...], MinLen(1)] = (0,)
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Settings of the optimizer that the study names, in place of the recipe's."""
    equal_time: str | None = None
    """Name of another arm, whose training time this arm gets."""

    def __post_init__(self) -> None:
        """Check that no seed occurs twice."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; name each once")

    @property
    def slug(self) -> str:
        """Name for folders: `DINO + SelfPatch, k = 2` -> `dino-selfpatch-k-2`."""
        return slug(self.name)

    @property
    def epochs(self) -> float:
        """Length of its training, which no arm limits by time."""
        assert self.config.epochs is not None
        return self.config.epochs


@settings
class Measurement:
    """An evaluation and the column of the table for each of its metrics that is shown."""

    entry: Entry
    columns: Annotated[dict[StrictStr, StrictStr], MinLen(1)]


@settings
class Study:
    """A study."""

    title: str
    question: str = ""
    arms: tuple[Arm, ...]
    reference: str
    """Name of the arm that the others are compared with, or AS_IS."""
    baselines: tuple[str, ...] = ()
    """UNTRAINED, AS_IS, or baselines as `selfpatch.load` takes them."""
    evaluations: tuple[Measurement, ...]
    """Evaluations of every network."""
    over_time: tuple[Measurement, ...] = ()
    """Evaluations of the kept checkpoints."""
    pictures: Path | None = None
    """Images for the sheet of patch features."""

    def __post_init__(self) -> None:
        """Check what several values decide together."""
        names, slugs = [arm.name for arm in self.arms], [arm.slug for arm in self.arms]
        with_epochs = [arm.name for arm in self.arms if arm.equal_time is None]
        for arm in self.arms:
            if not arm.slug or slugs.count(arm.slug) > 1:
                raise ValueError(f"the arm {arm.name!r} needs a name that differs from the others in its words")
            if arm.equal_time not in (None, *with_epochs):
                raise ValueError(f"arm {arm.name!r} has equal_time {arm.equal_time!r}, which is no arm with epochs")
        known = re.compile(rf"{UNTRAINED}|{AS_IS}|baseline:({'|'.join(BASELINES)}):[1-9]\d*")
        for baseline in self.baselines:
            if not known.fullmatch(baseline) or self.baselines.count(baseline) > 1:
                known_names = ", ".join([UNTRAINED, AS_IS, *(f"baseline:{name}:P" for name in BASELINES)])
                raise ValueError(f"the baseline {baseline!r} is unknown or there twice; use {known_names}")
        if AS_IS in self.baselines and len(self.weights) != 1:
            raise ValueError(
                f"the baseline {AS_IS!r} is for arms that start from the same weights, but they start from "
                f"{len(self.weights)} different ones; set init or teacher, or leave the baseline out"
            )
        references = [*names, *({AS_IS} & set(self.baselines))]
        if self.reference not in references:
            raise ValueError(f"reference is {self.reference!r}, which is no arm; use one of: {', '.join(references)}")
        for measurements in (self.evaluations, self.over_time):
            columns = [column for m in measurements for column in m.columns.values()]
            for column in columns:
                if columns.count(column) > 1:
                    raise ValueError(f"the column {column!r} is there twice; give each its own heading")
        if self.over_time and not any(arm.config.checkpoint.keep_every_epochs for arm in self.arms):
            raise ValueError("over_time evaluates kept checkpoints; set checkpoint.keep_every_epochs")

    @property
    def weights(self) -> tuple[str, ...]:
        """Weights that arms start from or learn from, each once."""
        named = (weights for arm in self.arms for weights in (arm.config.init, arm.config.teacher))
        return tuple(dict.fromkeys(weights for weights in named if weights is not None))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all arms, in the order of the arms."""
        return tuple(dict.fromkeys(seed for arm in self.arms for seed in arm.seeds))

    def timed_against(self, arm: Arm) -> Arm:
        """Return the arm whose training time an arm with `equal_time` gets."""
        return next(other for other in self.arms if other.name == arm.equal_time)


def slug(name: str) -> str:
    """Return the words of a name, in lower case and joined by hyphens."""
    return "-".join(re.findall(r"\w+", name.lower()))


def read_study(path: str | Path, data: str | Path, size: str | None = None, weights: str | None = None) -> Study:
    """Return the study of a file, after checking all of it.

    Args:
        path: the file.
        data: folder that its paths are relative to.
        size: one of its `sizes`. If None, no size is applied.
        weights: weights of the arms with `init: weights`, as `selfpatch.load` takes them.

    Raises:
        ValueError: the file, the size, the data or the weights do not exist, or the file holds something unknown.
    """
    spec = _read(Path(path).expanduser(), ())
    try:
        sizes = checked(spec.pop("sizes", None) or {}, dict[StrictStr, Values], "sizes")
        if size is not None and size not in sizes:
            raise ValueError(f"there is no size {size!r}; use one of: {', '.join(sizes) or '(there is none)'}")
        chosen = _laid_over(spec, sizes[size] if size is not None else {})
        return _study(chosen, Path(data).expanduser(), weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the content of a file, laid over the files that it extends."""
    if path.resolve() in above:
        raise ValueError(f"{path} extends itself, through {above[-1]}; leave one `extends` out")
    spec = parse_yaml(read_text(path, "give the YAML file of a study"), str(path))
    below = spec.pop("extends", None)
    return spec if below is None else _laid_over(_read(path.parent / str(below), (*above, path.resolve())), spec)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` laid over `below`: mappings key by key, other values as a whole."""
    both = dict(below)
    for key, value in above.items():
        mappings = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = _laid_over(below[key], value) if mappings else value
    return both


def _study(spec: Mapping[str, Any], data: Path, weights: str | None) -> Study:
    spec = {str(key): value for key, value in spec.items() if value is not None}
    for key in ("title", "arms", "evaluations"):
        if not spec.get(key):
            raise ValueError(f"the study has no {key}; a study needs title, pretrain, arms and evaluations")
    common = checked(spec.pop("settings", {}), Values, "settings")
    named = checked(spec["arms"], dict[StrictStr, Values | None], "arms")
    arms = {name: values for name, values in named.items() if values is not None}
    if not arms:
        raise ValueError("every arm of the study is null, which leaves it out; give one settings or {}")
    defaults = {key: spec.pop(key) for key in ("pretrain", "seeds") if key in spec}
    spec["arms"] = [_arm(name, defaults | values, common, data, weights) for name, values in arms.items()]
    baselines = spec.setdefault("baselines", [])
    from_weights = isinstance(baselines, list) and AS_IS in baselines
    spec.setdefault("reference", AS_IS if from_weights else spec["arms"][0].name)
    spec["question"] = " ".join(str(spec.get("question", "")).split())
    if "pictures" in spec:
        spec["pictures"] = _existing(data, spec["pictures"], "pictures")
    for key in {"evaluations", "over_time"} & spec.keys():
        items = checked(spec[key], tuple[Values, ...], key)
        spec[key] = [_measurement(i, item, data, f"{key}, entry {i}") for i, item in enumerate(items, start=1)]
    study = Study(**spec)
    if weights is not None and _named_weights("init", FROM_OPTION, data, weights) not in study.weights:
        raise ValueError(f"weights is {weights!r}, but no arm starts from them; set `init: weights`, or leave them out")
    return study


def _existing(data: Path, name: Any, where: str) -> Path:
    path = data / str(name)
    if not path.exists():
        raise ValueError(f"{where}: there is no {path}; name the data folder with --data")
    return path


def _named_weights(setting: str, name: str | None, data: Path, weights: str | None) -> str | None:
    """Return the weights that the value of an arm's `init` or `teacher` stands for."""
    if name is None:
        return None
    if name == FROM_OPTION:
        if weights is None:
            raise ValueError(
                f"{setting} is 'weights', the weights that the command names, but none are named; give --weights"
            )
        name, data = weights, Path()
    if name.startswith((TIMM, HUB)):
        return name
    path = data / Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"there are no weights at {path}; name a file, a run directory, {TIMM}NAME or {HUB}OWNER/NAME")
    return str(path.resolve())


def _arm(name: str, values: Mapping[str, Any], common: Mapping[str, Any], data: Path, weights: str | None) -> Arm:
    values = dict(values)
    seeds, sources = values.pop("seeds", (0,)), values.pop("pretrain", None) or []
    if not sources:
        raise ValueError(f"arm {name!r} has no training data; set pretrain in the study or in the arm")
    sources = sources if isinstance(sources, list) else [sources]
    pretrain = {str(source): _existing(data, source, "pretrain") for source in sources}
    merged = _laid_over(common, values)
    equal_time, recipe = merged.pop("equal_time", None), merged.pop("recipe", None)
    if taken := merged.keys() & {"data", "out", "seed", "device"}:
        raise ValueError(f"arm {name!r} sets {min(taken)}, which the study sets; leave it out")
    if "minutes" in merged:  # its numbers would depend on the machine's load
        raise ValueError(f"arm {name!r} sets minutes; give epochs, or the name of another arm as equal_time")
    if merged.get("channels", 3) != 3:
        raise ValueError(f"arm {name!r} has channels {merged['channels']!r}; the evaluations use 3; leave it out")
    try:
        base = RunConfig() if recipe is None else load_recipe(str(recipe))
        base = base.override({key: merged.pop(key) for key in ("method", "objective", "model") if key in merged})
        for used in base.used:
            find_objective({**METHODS, **OBJECTIVES}, used, "method or objective")
        # The common settings may include methods that this arm does not use.
        unused = {*METHODS, *OBJECTIVES} - {*base.used, *values}
        config = base.override({key: value for key, value in merged.items() if key not in unused})
        init = _named_weights("init", config.init, data, weights)
        teacher = _named_weights("teacher", config.teacher, data, weights)
        config = replace(config, init=init, teacher=teacher, minutes=None)
        named = merged.get("optimizer") or {}
        return Arm(name=name, config=config, pretrain=pretrain, seeds=seeds, optimizer=named, equal_time=equal_time)
    except ValueError as error:
        raise ValueError(f"arm {name!r}: {error}") from None


def _measurement(number: int, item: Mapping[str, Any], data: Path, where: str) -> Measurement:
    if not item.get("columns"):
        raise ValueError(f"{where}: give columns, a heading for each metric to show: mIoU: CamVid")
    entry = read_entry(number, {key: value for key, value in item.items() if key != "columns"}, where)
    entry = replace(entry, data=str(_existing(data, entry.data, where)))
    try:
        return Measurement(entry=entry, columns=item["columns"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
