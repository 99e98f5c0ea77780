"""`selfpatch pretrain`: train a network on images without labels."""

import contextlib
import itertools
from dataclasses import fields, replace
from typing import Annotated, Any

import tyro

from selfpatch.cli import suggestions
from selfpatch.cli.parsing import DryRunOptions, peek, print_report, read_options, unknown_option
from selfpatch.config.parsing import nested
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import COMPOSITION, LENGTHS, NO_METHOD, SAMPLES, RunConfig
from selfpatch.config.schema import settings
from selfpatch.core.dry_run import dry_run as dry_running

DESCRIPTION = """Pre-train a network on images without labels.

The defaults shown come from the recipe. Settings of a method or objective are written with its name:
--dino.num-prototypes 1024 --selfpatch.k 2 --selfpatch.window 5

Name the method or objective to list its settings: selfpatch pretrain --objective distill --help

Weights of losses are written with the name of the loss: --loss-weights.patch 0.2

Several processes train together: torchrun --nproc-per-node N -m selfpatch pretrain ..."""


@settings
class PretrainOptions(DryRunOptions, RunConfig):
    """Settings of a run, and whether to try them out."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    _refuse_unknown(arguments)
    arguments = _with_lists(arguments)
    chosen = peek(arguments, "recipe", "data", "model", *COMPOSITION, *LENGTHS)
    helping = bool({"--help", "-h"} & {*arguments})
    if helping:
        base = load_recipe(chosen.get("recipe", SAMPLES))
    else:
        from selfpatch.api.first_checks import check_names, recipe_for

        check_names(**{name: chosen[name] for name in ("model", "method", "objective") if name in chosen})
        with dry_running(enabled={"--dry-run", "--dry_run"} & {*arguments} != set()):
            composed = bool(COMPOSITION & chosen.keys())
            base = recipe_for(chosen.get("data"), chosen.get("recipe"), composed=composed)
    lengths = {name: chosen[name] for name in LENGTHS if name in chosen}
    with contextlib.suppress(ValueError):  # the parser refuses a wrong value with the option's name
        base = base.override({name: None if value == "None" else value for name, value in lengths.items()})
    if helping and COMPOSITION & chosen.keys():
        _help_on_components(base, chosen, arguments)
    default = replace(base.for_model(chosen.get("model", base.model)), components={}, loss_weights={})
    # tyro leaves over settings of components and names of losses, which it cannot parse.
    options, others = read_options(
        PretrainOptions,
        "pretrain",
        arguments,
        description=DESCRIPTION + _component_settings(base),
        default=PretrainOptions(**_values(default)),
        return_unknown_args=True,
    )
    weights = {**base.loss_weights, **options.loss_weights}
    config = RunConfig(**_values(options) | {"components": base.components, "loss_weights": weights})
    config = config.override(nested(_pairs(others)))
    from selfpatch.api.first_checks import check_run

    with dry_running(enabled=options.dry_run):
        check_run(config)
    from selfpatch.api.pretrain import pretrain

    named = _named_phases(arguments, config)
    if options.dry_run:
        print_report(pretrain(config, dry_run=True, optimizer=named))
    else:
        pretrain(config, optimizer=named)
    return 0


def _refuse_unknown(arguments: list[str]) -> None:
    """Raise ValueError for an unknown option before the images are counted; those with a dot are checked later."""
    known = {"help", *suggestions.option_names(PretrainOptions)}
    known |= {f"no-{name}" for name in known}
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and "." not in name and name not in known and name != "loss-weights":
            raise unknown_option(word.partition("=")[0], PretrainOptions, "pretrain")


def _named_phases(arguments: list[str], config: RunConfig) -> dict[str, float]:
    """Return the phases of the training whose lengths the command names, which need not differ from the recipe's."""
    from selfpatch.api.short_runs import PHASES

    words = {word.partition("=")[0].replace("-", "_") for word in arguments}
    return {name: getattr(config.optimizer, name) for name in PHASES if f"__optimizer.{name}" in words}


def _help_on_components(recipe: RunConfig, chosen: dict[str, str], arguments: list[str]) -> None:
    """Print the help with the settings of the method and objectives that the command names, and exit.

    Importing them takes seconds, so that other pages list only those that the recipe sets.
    """
    from selfpatch.methods.registry import METHODS, OBJECTIVES, find_objective

    config = recipe.override({name: chosen[name] for name in ("model", "method", "objective") if name in chosen})
    kinds = {} if config.method == NO_METHOD else {config.method: find_objective(METHODS, config.method, "method")}
    kinds |= {name: find_objective(OBJECTIVES, name, "objective") for name in config.objectives}
    sections = {name: kind.Config(**config.components.get(name, {})) for name, kind in kinds.items()}
    annotations = {name: Annotated[type(section), tyro.conf.FlagConversionOff] for name, section in sections.items()}
    options = settings(type("PretrainOptions", (PretrainOptions,), {"__annotations__": annotations, **sections}))
    default = options(**_values(replace(config, components={}, loss_weights={})), **sections)
    read_options(options, "pretrain", arguments, description=DESCRIPTION, default=default)


def _values(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run by name, without options of the command."""
    return {field.name: getattr(config, field.name) for field in fields(RunConfig)}


def _component_settings(recipe: RunConfig) -> str:
    """Return a paragraph of help with the recipe's options that tyro does not list."""
    sections = {**{name: recipe.components.get(name, {}) for name in recipe.used}, "loss_weights": recipe.loss_weights}
    named = ((f"{section}.{key}", value) for section, values in sections.items() for key, value in values.items())
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in named)
    return f"\n\nThe recipe also sets {options}" if options else ""


def _with_lists(arguments: list[str]) -> list[str]:
    """Return the arguments with several words after a setting of a component as one list: `a b` becomes `[a, b]`."""
    sections, words, joined = {field.name for field in fields(RunConfig)}, list(arguments), []
    while words:
        joined.append(words.pop(0))
        section, dot, _ = joined[-1].removeprefix("--").partition(".")
        if not joined[-1].startswith("--") or not dot or "=" in joined[-1] or section.replace("-", "_") in sections:
            continue
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        if len(values) > 1:
            words[: len(values)] = [f"[{', '.join(values)}]"]
    return joined


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """Return the settings of components by name: `["--selfpatch.k", "2"]` -> `[("selfpatch.k", "2")]`."""
    pairs, remaining = [], list(words)
    while remaining:
        name, equals, value = remaining.pop(0).partition("=")
        if name == "--loss-weights":
            raise ValueError("--loss-weights needs the name of a loss; write e.g. --loss-weights.patch 0.2")
        if not name.startswith("--") or "." not in name:
            raise unknown_option(name, PretrainOptions, "pretrain")
        if not equals and not remaining:
            raise ValueError(f"option {name} lacks a value; write it after the name")
        pairs.append((name.removeprefix("--"), value if equals else remaining.pop(0)))
    return pairs
