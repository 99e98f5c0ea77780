"""The layers of the package: a module imports lower layers only, and its own layer only where the law says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "selfpatch"

LAYERS = {
    "types": 0, "distributed": 0, "config": 0, "ranges": 0, "settings": 0, "files": 0, "plain": 0, "allocator": 0,
    "ops": 1,
    "nn": 2, "data": 2,
    "methods": 3, "objectives": 3, "evaluation": 3, "pictures": 3,
    "optim": 4, "run": 4, "watching": 4, "keeping": 4, "weights": 4, "exports": 4, "pretraining": 4,
    "build": 5, "components": 5, "monitoring": 5, "run_report": 5, "suite_report": 5,
    "training_data": 5,
    "commands": 6, "measuring": 6, "benchmarks": 6,
    "cli": 7, "options": 7, "suite": 7, "study": 7,
    "__init__": 8, "__main__": 8,
}  # fmt: skip
"""Layer of each room or module, by the first part of its name below `selfpatch`."""

NEIGHBOURS = {
    "pretraining": {"optim", "run", "watching", "keeping"}, "keeping": {"run"}, "weights": {"run"},
    "exports": {"weights"},
    "config": {"ranges", "settings"}, "build": {"components"}, "cli": {"options"},
    "commands": {"measuring"}, "suite": {"options"}, "options": {"suite", "study"},
    "study": {"suite"},
}  # fmt: skip
"""What a module may import from its own layer."""

OPEN_ROOMS = {"benchmarks", "options", "nn", "data", "pictures", "ops", "weights", "exports", "study"}
"""Rooms whose modules may import one another freely. Methods and objectives may not at all."""

SHARED_BY_PROTOCOLS = {
    "features", "metrics", "result", "baselines", "batches", "fitting", "classified", "accuracy", "presets", "tuning",
    "strides",
}  # fmt: skip
"""What every evaluation protocol may import; the protocols themselves do not know one another."""

TRAINING = {
    "optim",
    "run",
    "watching",
    "keeping",
    "weights",
    "pretraining",
    "build",
    "methods",
    "objectives",
    "nn",
    "data",
    "ops",
}
KNOW_THE_CONFIG = {"run", "build", "training_data", "commands", "measuring", "benchmarks", "cli", "suite", "study"}


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported`: dotted names below `selfpatch`, or an outside package."""

    importer: str
    imported: str
    place: str
    inside: bool


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(source: str, importer: str, place: str, modules: set[str]) -> Iterator[Import]:
    """Every import of a file, wherever in it; `from selfpatch import build` counts as that of `selfpatch.training.factory`."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}:{node.lineno}: relative import; write the full name"
            base = node.module or ""
            names = [
                f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("selfpatch.") in modules else base
                for a in node.names
            ]
        for name in dict.fromkeys(names):
            inside = name.startswith("selfpatch.")
            yield Import(importer, name.removeprefix("selfpatch."), f"{place}:{node.lineno}", inside)


def all_modules(root: Path) -> dict[str, Path]:
    return {name_of(path, root): path for path in sorted(root.rglob("*.py"))}


def all_imports(root: Path) -> list[Import]:
    modules = all_modules(root)
    return [
        found
        for name, path in modules.items()
        for found in imports_of(path.read_text(), name, str(path.relative_to(root.parent.parent)), set(modules))
    ]


def room(name: str) -> str:
    return name.partition(".")[0]


def knows_timm(name: str) -> bool:
    """Its models are backbones; LARS is one of its optimizers; what is exported for it is tried in it."""
    return name in ("optim", "exports.timm_folder") or name.startswith("nn.backbones")


def complaint(found: Import) -> str | None:
    """Why an import breaks the law, or None."""
    a, b = found.importer, found.imported
    if not found.inside:
        return (
            "only nn/backbones, optim and export/timm_folder know timm"
            if room(b) == "timm" and not knows_timm(a)
            else None
        )
    if room(b) == "config" and room(a) not in KNOW_THE_CONFIG:
        return "only the composition root knows the configuration; take named values"
    if room(b) in ("evaluation", "monitoring") and room(a) in TRAINING:
        return "training never imports evaluation; it is handed a callable"
    if room(a) == room(b):
        return _within_a_room(a, b)
    if not {room(a), room(b)} <= LAYERS.keys():
        return None  # said by the test that every module has a layer
    above, below = LAYERS[room(a)], LAYERS[room(b)]
    if above < below:
        return f"{room(a)} is of layer {above}, below {room(b)} of layer {below}"
    if above == below and room(b) not in NEIGHBOURS.get(room(a), set()):
        return f"{room(a)} and {room(b)} are of the same layer"
    return None


def _within_a_room(a: str, b: str) -> str | None:
    if room(a) in OPEN_ROOMS:
        return None
    if room(a) != "evaluation":
        return f"the modules of {room(a)} do not import one another"
    protocol_a, protocol_b = (name.split(".")[1] if "." in name else "" for name in (a, b))
    if protocol_b in SHARED_BY_PROTOCOLS or protocol_a == protocol_b:
        return None
    return "evaluation protocols do not import one another"


def test_every_import_keeps_the_law() -> None:
    broken = [
        f"{i.place}: {i.importer} imports {i.imported}: {why}" for i in all_imports(ROOT) if (why := complaint(i))
    ]
    assert not broken, "\n".join(broken)


def test_every_module_has_a_layer() -> None:
    unknown = sorted({room(name) for name in all_modules(ROOT)} - LAYERS.keys())
    assert not unknown, f"give {', '.join(unknown)} a layer here and in the documentation of the architecture"
    assert len(all_imports(ROOT)) > 100, "the files were not found"


def test_no_configuration_below_the_composition_root() -> None:
    """Constructors and functions take named values; only the run directory keeps a configuration, as text on disk."""
    found = []
    for name, path in all_modules(ROOT).items():
        if LAYERS.get(room(name), 0) >= LAYERS["build"] or room(name) in ("config", "run"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found += [
                    f"{path}:{node.lineno}: {node.name}({a.arg})"
                    for a in arguments
                    if a.arg in ("cfg", "config", "args")
                ]
    assert not found, "\n".join(found)


MODULES = set(all_modules(ROOT)) | {
    "evaluation.knn",
    "evaluation.davis",
    "evaluation.davis.score",
    "evaluation.features",
}


@pytest.mark.parametrize(
    ("importer", "line", "why"),
    [
        ("ops.neighbours", "from selfpatch.models.heads import Center", "ops is of layer 1, below nn"),
        ("ops.neighbours", "def f():\n    from selfpatch.models import heads", "ops is of layer 1, below nn"),
        ("data.loader", "import selfpatch.models.heads", "data and nn are of the same layer"),
        ("nn.heads", "from selfpatch.data.augment.multicrop import draw_view", "nn and data are of the same layer"),
        (
            "methods.dino",
            "from selfpatch.methods.patch.selfpatch import SelfPatch",
            "methods and objectives are of the same layer",
        ),
        (
            "methods.dino",
            "from selfpatch.methods.image.ibot import IBOT",
            "the modules of methods do not import one another",
        ),
        (
            "evaluation.knn",
            "from selfpatch.evaluation.video_segmentation import evaluate",
            "evaluation protocols do not import one another",
        ),
        (
            "evaluation.features",
            "from selfpatch.evaluation import knn",
            "evaluation protocols do not import one another",
        ),
        ("optim", "from selfpatch.training.trainer import train", "optim and pretraining are of the same layer"),
        (
            "pretraining",
            "from selfpatch.evaluation.classification.knn.evaluate import evaluate",
            "training never imports evaluation",
        ),
        ("build", "from selfpatch import monitoring", "training never imports evaluation"),
        ("pretraining", "from selfpatch import build", "pretraining is of layer 4, below build"),
        ("nn.heads", "from selfpatch import config", "only the composition root knows the configuration"),
        ("weights", "import timm.layers", "only nn/backbones, optim and export/timm_folder know timm"),
        ("types", "from selfpatch.core.distributed import rank", "types and distributed are of the same layer"),
    ],
)
def test_a_broken_law_is_noticed(importer: str, line: str, why: str) -> None:
    complaints = [complaint(found) for found in imports_of(line, importer, "file.py", MODULES)]
    assert any(found is not None and found.startswith(why) for found in complaints), complaints


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("evaluation.davis", "from selfpatch.evaluation.video_segmentation.score import j_and_f"),
        ("evaluation.davis.score", "from selfpatch.evaluation.features import patch_features"),
        ("pretraining", "from selfpatch.training.optim import Schedule"),
        ("pictures.show", "from selfpatch.data.decode.pillow import read_image"),
        ("nn.backbones.vit", "import timm"),
        ("cli", "import selfpatch"),
    ],
)
def test_what_the_law_allows_is_allowed(importer: str, line: str) -> None:
    assert [complaint(found) for found in imports_of(line, importer, "file.py", MODULES)] == [None]
