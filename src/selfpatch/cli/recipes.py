"""`selfpatch recipes`: list the built-in recipes, or print one."""

import textwrap
from typing import Annotated

import tyro

from selfpatch.cli.parsing import read_options
from selfpatch.config.recipes import recipe_names, recipe_text
from selfpatch.config.schema import Name, settings

WIDTH = 80
PUBLISHED = "imagenet/train", "coco/train2017"
"""Data of the commands of published recipes."""


@settings
class RecipesOptions:
    """List the built-in recipes with their purpose, or print one as YAML, whose first lines say what to expect."""

    name: tyro.conf.Positional[Annotated[Name, tyro.conf.arg(metavar="NAME")] | None] = None
    """Recipe to print, by its name or the path of a YAML file."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(RecipesOptions, "recipes", arguments)
    print(recipe_text(options.name).rstrip() if options.name is not None else listing())
    return 0


def listing() -> str:
    """Return the names and purposes of the built-in recipes, those for a person's own images first."""
    texts = {name: recipe_text(name) for name in recipe_names()}
    own = {name: text for name, text in texts.items() if not any(data in text for data in PUBLISHED)}
    published = {name: text for name, text in texts.items() if name not in own}
    return (
        f"For your images\n{_entries(own)}\nPublished settings\n{_entries(published)}\n"
        "`selfpatch recipes NAME` prints a recipe; `extends: NAME` in a YAML file of your own builds on it."
    )


def _entries(texts: dict[str, str]) -> str:
    indent = " " * 4
    return "".join(
        f"  {name}\n{textwrap.fill(_purpose(text), WIDTH, initial_indent=indent, subsequent_indent=indent)}\n"
        for name, text in texts.items()
    )


def _purpose(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")
