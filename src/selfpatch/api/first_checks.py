"""Choice of a recipe, and what can be checked in the first second: nothing here imports torch or timm."""

from collections.abc import Sequence

from selfpatch.checkpoints.names import TIMM, require_weights
from selfpatch.config.names import METHODS, MODELS, OBJECTIVES
from selfpatch.config.recipes import choose_recipe, load_recipe
from selfpatch.config.run import FROM_INIT, NO_METHOD, NO_OBJECTIVE, SAMPLES, RunConfig
from selfpatch.config.schema import check_sides, close_match, size_text
from selfpatch.core.text import counted
from selfpatch.core.torchrun import announced_world_size
from selfpatch.data.batch_size import check_batch_size, fitting_batch_size
from selfpatch.data.sources.index import ImageIndex
from selfpatch.models.backbones.timm_names import may_be_timm_model

DEFAULT_PATCH = 16


def recipe_for(data: str | None = None, recipe: str | None = None, *, composed: bool = False) -> RunConfig:
    """Return a recipe, by default the one for the number of images, with a batch that fits the images.

    The batch of a recipe that was not named leaves at least eight steps an epoch, or is 16. That of a named one changes
    only if there are fewer images. `data` defaults to the recipe's, and that to the sample photographs. A run is
    `composed` if its method or objectives are named.

    Raises:
        ValueError: there is no such recipe, or there are no images.
    """
    named = None if recipe is None else load_recipe(recipe)
    data = data or (SAMPLES if named is None else named.data)
    if data == SAMPLES:
        return named or load_recipe(SAMPLES)
    index = ImageIndex.open(data)
    config = named or load_recipe(choose_recipe(len(index), data, composed=composed))
    num_images = _num_training(index, config)
    if named is not None and named.batch_size <= num_images:
        return named
    batch_size = min(config.batch_size, fitting_batch_size(num_images))
    return config.override({"batch_size": batch_size, "accumulate": 1})


def batch_note(config: RunConfig, num_images: int) -> list[str]:
    """Return a line if `recipe_for` changed the recipe's batch for a number of training images."""
    if config.recipe is None or config.batch_size != fitting_batch_size(num_images):
        return []
    usual = load_recipe(config.recipe).batch_size
    if usual <= config.batch_size:
        return []
    return [f"note: batch {config.batch_size} in place of the recipe's {usual}, for {counted(num_images, 'image')}"]


def check_names(*, model: str | None = None, method: str | None = None, objective: str | None = None) -> None:
    """Raise ValueError for a name that stands for nothing; None is not checked."""
    if method is not None and method not in (*METHODS, NO_METHOD):
        raise ValueError(f"unknown method {method!r}; {_hint(method, sorted(METHODS))}, none")
    for name in filter(None, (objective or NO_OBJECTIVE).split("+")):
        if name not in (*OBJECTIVES, NO_OBJECTIVE):
            raise ValueError(f"unknown objective {name!r}; {_hint(name, sorted(OBJECTIVES))}, none")
    if model is not None and model not in (*MODELS, FROM_INIT) and not may_be_timm_model(model.removeprefix(TIMM)):
        raise ValueError(f"unknown model {model!r}; {_hint(model, MODELS)}, or a name of timm's")


def check_run(config: RunConfig) -> None:
    """Raise ValueError for names, weights, sizes or images of a new run that cannot be right."""
    check_names(model=config.model, method=config.method, objective=config.objective)
    for weights in (config.init, config.teacher):
        if weights is not None:
            require_weights(weights)
    if config.model in MODELS and config.model.startswith("vit_") and config.method != NO_METHOD:
        try:
            check_sides(config.crops.global_size, config.patch_size or DEFAULT_PATCH)
        except ValueError as error:
            raise ValueError(f"crops.global_size is {size_text(config.crops.global_size)}: {error}") from None
    if config.data != SAMPLES:
        index = ImageIndex.open(config.data)
        index.require_files()
        check_batch_size(
            config.batch_size,
            _num_training(index, config),
            world_size=announced_world_size(),
            accumulate=config.accumulate,
        )


def _num_training(index: ImageIndex, config: RunConfig) -> int:
    """Return the number of images that are not held out."""
    return len(index.split(config.loader.held_out, config.seed)[0])


def _hint(name: str, known: Sequence[str]) -> str:
    meant = close_match(name, known)
    return (f"did you mean {meant}? Else " if meant else "") + f"use one of: {', '.join(known)}"
