"""Built-in recipes and recipe files."""

from importlib import resources
from pathlib import Path

from selfpatch.config.parsing import parse_yaml
from selfpatch.config.run import SAMPLES, RunConfig
from selfpatch.core.text_files import read_text


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    folder = resources.files("selfpatch") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str) -> RunConfig:
    """Load a built-in recipe by name, or a YAML file by path, in place of the defaults.

    Raises:
        ValueError: there is no such recipe, it is not YAML, or it has an unknown setting or a value out of range.
    """
    file = resources.files("selfpatch") / "recipes" / f"{name}.yaml"
    if not file.is_file():
        file = Path(name)
        if file.suffix not in (".yaml", ".yml") or not file.is_file():
            raise ValueError(f"no recipe {name!r}; use the path of a .yaml file or one of: {', '.join(recipe_names())}")
    values = parse_yaml(read_text(Path(str(file))), name)
    if "recipe" in values:
        raise ValueError(f"{name} names the recipe {values['recipe']!r}, but cannot extend it; copy its settings")
    return RunConfig().override(values | {"recipe": name})


def choose_recipe(num_images: int, data: str) -> str:
    """Return the name of the recipe for a data set of `num_images` images, where none was named."""
    if data == SAMPLES:
        return "samples"
    sizes = {3_000: "small-1k", 30_000: "small-10k", 500_000: "small-100k"}
    return next((name for limit, name in sizes.items() if num_images <= limit), "selfpatch-dino-vits16")
