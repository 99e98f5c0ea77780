"""Architecture rules: allowed imports between packages, no cycles, short files, tests that mirror the sources."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

PACKAGES = (
    "cli", "experiments", "api", "embedding", "training", "evaluation", "methods", "checkpoints", "visualization",
    "data", "losses", "models", "ops", "config", "core",
)  # fmt: skip
"""From top to bottom: a package imports only packages further right."""

ENTRY_MODULES = ("__init__", "__main__")
"""Entry points of `selfpatch`, which may import every package."""

WHOLE_CONFIG = ("cli", "experiments", "api", "training.factory", "config")
"""Modules that may import the whole RunConfig; a component receives its own section."""

TIMM = (
    "models.backbones", "training.optim", "checkpoints.export.timm", "evaluation.classification.finetune.augmentation",
)  # fmt: skip
"""Modules that may import timm: backbones, its LARS optimizer, the check of exported weights, and its RandAugment."""

LOSSES_BUILD_ON = ("ops", "models.layers", "models.heads", "models.pooling", "config", "core", "losses")
"""Packages that a loss may import, so that it works in any training loop."""

READ_DATA_SETS = ("evaluation", "data", "visualization")
SECOND_READERS = {"read_text", "iterdir", "glob", "rglob", "listdir", "scandir", "walk"}
"""Attributes of paths and of `os` that read files and folders of a data set past the one reader."""

MAX_LINES = 350
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
CROSS_PACKAGE_TESTS = {"end_to_end", "parity", "benchmarks", "examples", "fuzz"}
"""Folders of tests/ that belong to no package."""


@dataclass(frozen=True)
class Import:
    """One imported name: dotted modules below `selfpatch`, or an outside package."""

    importer: str
    imported: str
    name: str
    line: int
    inside: bool


class Tree:
    """The sources and tests of a checkout, as text."""

    def __init__(self, repository: Path, source: str = "src/selfpatch") -> None:
        self.source, self.tests = repository / source, repository / "tests"
        self.files = {self._dotted(path): path for path in sorted(self.source.rglob("*.py"))}
        self.packages = {name for name, path in self.files.items() if path.name == "__init__.py"}
        self.imports = [found for name in self.files for found in self._imports_of(name)]

    def _dotted(self, path: Path) -> str:
        parts = path.relative_to(self.source).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    def _imports_of(self, importer: str) -> Iterator[Import]:
        """Return every import of a module, inside functions and under TYPE_CHECKING too."""
        root = self.source.name
        for node in ast.walk(ast.parse(self.files[importer].read_text())):
            if isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{importer}:{node.lineno}: relative import; write the full name"
                pairs = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, name in pairs:
                inside = is_within(module, (root,))
                below = module.removeprefix(root).lstrip(".") if inside else module
                submodule = f"{below}.{name}".lstrip(".")
                if inside and submodule in self.files:
                    below, name = submodule, ""
                yield Import(importer, below, name, node.lineno, inside)


def top_package(module: str) -> str:
    return module.partition(".")[0]


def is_within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def unknown_packages(tree: Tree) -> Iterator[str]:
    for name in sorted({top_package(module) for module in tree.files} - {*PACKAGES, *ENTRY_MODULES}):
        yield f"{name} is no package; the packages are: {', '.join(PACKAGES)}"


def imports_upwards(tree: Tree) -> Iterator[str]:
    for found in tree.imports:
        above, below = top_package(found.importer), top_package(found.imported)
        if found.inside and above in PACKAGES and below != above:
            if found.imported == "" or below in ENTRY_MODULES:
                yield f"{found.importer}:{found.line} imports the package itself"
            elif below in PACKAGES and PACKAGES.index(below) < PACKAGES.index(above):
                yield f"{found.importer}:{found.line} imports {found.imported}, which is above it"


def cycles(tree: Tree) -> Iterator[str]:
    edges: dict[str, set[str]] = {}
    for found in tree.imports:
        if found.inside and found.imported in tree.files and found.imported != found.importer:
            edges.setdefault(found.importer, set()).add(found.imported)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> Iterator[str]:
        if module in path:
            yield " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(edges.get(module, ())):
                yield from visit(imported, (*path, module))
            done.add(module)

    for module in sorted(edges):
        yield from visit(module, ())


def imports_between_siblings(tree: Tree) -> Iterator[str]:
    """Methods and objectives never import one another, and neither do the protocols of evaluation."""
    protocols = {name for name in tree.packages if name.startswith("evaluation.") and name.count(".") == 1}
    nested = {name for name in tree.packages if name.startswith("evaluation.") and name.count(".") == 2}
    for found in tree.imports:
        a, b = found.importer, found.imported
        if not found.inside or a == b:
            continue
        if is_within(a, ("methods.image", "methods.patch")) and is_within(b, ("methods.image", "methods.patch")):
            yield f"{a}:{found.line} imports {b}; what both need lies in losses/"
        for level in (protocols, nested):
            mine, other = _package_of(a, level), _package_of(b, level)
            if mine and other and mine != other:
                yield f"{a}:{found.line} imports {b}; protocols do not import one another"


def _package_of(module: str, packages: set[str]) -> str | None:
    return next((package for package in packages if is_within(module, (package,))), None)


def misplaced_imports(tree: Tree) -> Iterator[str]:
    for found in tree.imports:
        where = f"{found.importer}:{found.line}"
        if found.name == "RunConfig" and not is_within(found.importer, (*WHOLE_CONFIG, *ENTRY_MODULES)):
            yield f"{where} imports the whole RunConfig; take the section that is read"
        if not found.inside and top_package(found.imported) == "timm" and not is_within(found.importer, TIMM):
            yield f"{where} imports timm; only {', '.join(TIMM)} may"
        if found.inside and top_package(found.importer) == "losses" and not is_within(found.imported, LOSSES_BUILD_ON):
            yield f"{where} imports {found.imported}; a loss builds on {', '.join(LOSSES_BUILD_ON)} alone"


def long_files(tree: Tree) -> Iterator[str]:
    for name, path in tree.files.items():
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{name} has {lines} lines; split it by what it answers, {MAX_LINES} at most"


def empty_names(tree: Tree) -> Iterator[str]:
    for name in tree.files:
        if EMPTY_NAMES & set(name.split(".")):
            yield f"{name}: name the file by what it holds"


def second_readers(tree: Tree) -> Iterator[str]:
    """Data sets are read by `core.text_files` and `core.folders` alone, which treat marks, locales and litter alike."""
    for name, path in tree.files.items():
        if top_package(name) not in READ_DATA_SETS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in SECOND_READERS:
                yield f"{name}:{node.lineno} calls {node.attr}; use core.text_files or core.folders"


def mirrors_without_a_source(tree: Tree) -> Iterator[str]:
    """`tests/ops/test_knn.py` and `tests/ops/test_knn_chunks.py` mirror `ops/knn.py`."""
    for path in sorted(tree.tests.rglob("test_*.py")):
        folders = path.relative_to(tree.tests).parts[:-1]
        if not folders or folders[0] in CROSS_PACKAGE_TESTS:
            continue
        package = ".".join(folders)
        modules = {name.rpartition(".")[2] for name in tree.files if name.rpartition(".")[0] == package}
        words = path.stem.removeprefix("test_")
        known = {*modules, folders[-1]}
        if package not in tree.packages or not any(words == m or words.startswith(f"{m}_") for m in known):
            yield f"tests/{'/'.join((*folders, path.name))} mirrors no module of {package}"


def sources_without_a_test(tree: Tree) -> Iterator[str]:
    for package in sorted(tree.packages - set(ENTRY_MODULES)):
        holds_code = any(name.rpartition(".")[0] == package and name not in tree.packages for name in tree.files)
        if holds_code and not any((tree.tests / package.replace(".", "/")).rglob("test_*.py")):
            yield f"{package} has no tests in tests/{package.replace('.', '/')}"


RULES: Mapping[str, Callable[[Tree], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        unknown_packages, imports_upwards, cycles, imports_between_siblings, misplaced_imports,
        long_files, empty_names, second_readers, mirrors_without_a_source, sources_without_a_test,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(REPOSITORY)


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(tree: Tree, rule: str) -> None:
    assert len(tree.files) > 150, "the sources were not found"
    broken = list(RULES[rule](tree))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("rule", [cycles, long_files, empty_names])
def test_rule_holds_for_the_benchmarks(rule: Callable[[Tree], Iterator[str]]) -> None:
    benchmarks = Tree(REPOSITORY, "benchmarks")
    assert len(benchmarks.files) > 15
    assert not list(rule(benchmarks))


def test_no_ignored_file_is_tracked() -> None:
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    try:
        tracked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    assert tracked.split("\n") == [""]


def test_there_are_at_most_16_packages() -> None:
    assert len(PACKAGES) == len(set(PACKAGES)) <= 16


PLANTED = [
    ("unknown_packages", {"src/selfpatch/shed/x.py": ""}, "shed is no package"),
    ("imports_upwards", {"src/selfpatch/ops/x.py": "from selfpatch.models.y import z"}, "ops.x:1 imports models"),
    (
        "imports_upwards",
        {"src/selfpatch/ops/x.py": "def f():\n    from selfpatch.cli import main", "src/selfpatch/cli/main.py": ""},
        "ops.x:2 imports cli.main",
    ),
    ("imports_upwards", {"src/selfpatch/ops/x.py": "import selfpatch"}, "ops.x:1 imports the package itself"),
    (
        "cycles",
        {"src/selfpatch/ops/a.py": "from selfpatch.ops import b", "src/selfpatch/ops/b.py": "import selfpatch.ops.a"},
        "ops.a -> ops.b -> ops.a",
    ),
    (
        "imports_between_siblings",
        {
            "src/selfpatch/methods/image/a.py": "from selfpatch.methods.patch.b import B",
            "src/selfpatch/methods/patch/b.py": "",
        },
        "methods.image.a:1 imports methods.patch.b",
    ),
    (
        "imports_between_siblings",
        {
            "src/selfpatch/evaluation/__init__.py": "",
            "src/selfpatch/evaluation/one/__init__.py": "",
            "src/selfpatch/evaluation/one/a.py": "from selfpatch.evaluation.two.b import f",
            "src/selfpatch/evaluation/two/__init__.py": "",
            "src/selfpatch/evaluation/two/b.py": "",
        },
        "protocols do not import one another",
    ),
    (
        "misplaced_imports",
        {"src/selfpatch/data/x.py": "from selfpatch.config.run import RunConfig"},
        "data.x:1 imports the whole RunConfig",
    ),
    ("misplaced_imports", {"src/selfpatch/ops/x.py": "import timm.layers"}, "ops.x:1 imports timm"),
    (
        "misplaced_imports",
        {"src/selfpatch/losses/x.py": "from selfpatch.models.branch import Branch"},
        "losses.x:1 imports models.branch",
    ),
    ("long_files", {"src/selfpatch/ops/x.py": "x = 1\n" * (MAX_LINES + 1)}, f"ops.x has {MAX_LINES + 1} lines"),
    ("empty_names", {"src/selfpatch/ops/utils.py": ""}, "ops.utils"),
    ("second_readers", {"src/selfpatch/data/x.py": "names = path.iterdir()"}, "data.x:1 calls iterdir"),
    ("mirrors_without_a_source", {"tests/ops/test_nothing.py": ""}, "tests/ops/test_nothing.py mirrors no module"),
    (
        "sources_without_a_test",
        {"src/selfpatch/ops/__init__.py": "", "src/selfpatch/ops/x.py": ""},
        "ops has no tests in tests/ops",
    ),
]


@pytest.mark.parametrize(("rule", "files", "complaint"), PLANTED)
def test_a_planted_violation_is_noticed(tmp_path: Path, rule: str, files: dict[str, str], complaint: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(complaint in broken for broken in RULES[rule](Tree(tmp_path)))
