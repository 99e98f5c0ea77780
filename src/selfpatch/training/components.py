"""Methods and objectives from their settings, and the pool and heads that they bring."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from selfpatch.config.schema import override
from selfpatch.core.types import Objective


def make_component(cls: type[Objective], name: str, settings: Mapping[str, Any], facts: Mapping[str, int]) -> Objective:
    """Build a method or objective from settings that override those of its `Config`.

    Its name, such as `dino`, stands in errors. The constructor receives those of the facts that it has a parameter for:
    `dim`, `num_heads`, `num_local`, `batch_size`.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """
    parameters = inspect.signature(cls).parameters
    given = {fact: value for fact, value in facts.items() if fact in parameters}
    return cls(**given, config=override(cls.Config(), settings, name))


def only_pool(objectives: Mapping[str, Objective]) -> nn.Module | None:
    """Return the pool that makes the image token, if an objective brings one; raise ValueError if several do."""
    pools = {name: pool for name, o in objectives.items() if (pool := o.pool()) is not None}
    if len(pools) > 1:
        raise ValueError(f"{' and '.join(pools)} each bring a pool for the image token; only one can")
    return next(iter(pools.values()), None)


def all_heads(objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
    """Return the heads of all objectives by name; raise ValueError if two bring a head of the same name."""
    heads: dict[str, nn.Module] = {}
    for name, objective in objectives.items():
        new = objective.heads()
        if twice := heads.keys() & new.keys():
            raise ValueError(f"{name} brings a head {', '.join(twice)!r} that another method or objective brings too")
        heads |= new
    return heads
