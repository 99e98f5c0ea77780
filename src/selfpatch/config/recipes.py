"""Built-in recipes and recipe files."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from selfpatch.config.parsing import parse_yaml
from selfpatch.config.run import SAMPLES, RunConfig
from selfpatch.config.schema import close_match
from selfpatch.core.text_files import read_text

SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    folder = resources.files("selfpatch") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str) -> RunConfig:
    """Load a built-in recipe by name, or a YAML file by path, in place of the defaults.

    A recipe may begin with `extends: NAME`, another recipe or a file next to it, whose settings its own override.

    Raises:
        ValueError: there is no such recipe, it is not YAML, it extends itself, or it has an unknown setting or a value
            out of range.
    """
    return replace(_load(name, ()), recipe=name)


def _load(name: str, extending: tuple[str, ...]) -> RunConfig:
    """Return a recipe's settings; `extending` are the recipes that led here."""
    file = _file(name)
    if file.resolve() in (_file(other).resolve() for other in extending):
        raise ValueError(f"the recipe {name} extends itself by way of {' and '.join(extending)}; leave one extends out")
    values = parse_yaml(read_text(file), name)
    if "recipe" in values:
        raise ValueError(f"{name} names the recipe {values['recipe']!r}; to build on it, write `extends` for `recipe`")
    base, below = RunConfig(), values.pop("extends", None)
    if below is not None:
        if not isinstance(below, str):
            raise ValueError(f"extends in {name} is {below!r}; name a recipe or a .yaml file")
        base = _load(str(file.parent / below) if below.endswith(SUFFIXES) else below, (*extending, name))
    config = base.override(values)
    components = {section: given for section, given in config.components.items() if section in config.used}
    return replace(config, components=components)


def _file(name: str) -> Path:
    builtin = Path(str(resources.files("selfpatch") / "recipes" / f"{name}.yaml"))
    file = builtin if builtin.is_file() else Path(name)
    if file != builtin and (file.suffix not in SUFFIXES or not file.is_file()):
        names = recipe_names()
        meant = close_match(name, names)
        hint = f"did you mean {meant}? Else " if meant else ""
        raise ValueError(f"no recipe {name!r}; {hint}use the path of a .yaml file or one of: {', '.join(names)}")
    return file


def recipe_text(name: str) -> str:
    """Return the text of a recipe; its first line says what it is for.

    Raises:
        ValueError: there is no such recipe.
    """
    return read_text(_file(name))


def choose_recipe(num_images: int, data: str, *, composed: bool = False) -> str:
    """Return the name of the recipe for a data set of `num_images` images, where none was named.

    If a run is `composed` of a method or objectives of the user's choice, the recipe has settings for DINO + SelfPatch.
    """
    if data == SAMPLES:
        return "samples"
    sizes = {3_000: "small-1k" if composed else "small-pairs", 30_000: "small-10k", 500_000: "small-100k"}
    return next((name for limit, name in sizes.items() if num_images <= limit), "selfpatch-dino-vits16")
