"""Methods and objectives from their settings, with their pool and heads."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from selfpatch.config.schema import override
from selfpatch.core.types import Objective


def make_component(cls: type[Objective], name: str, settings: Mapping[str, Any], dims: Mapping[str, int]) -> Objective:
    """Build a method or objective from settings that override those of its `Config`.

    `name` prefixes errors. Only the `dims` that the constructor accepts are passed.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """
    parameters = inspect.signature(cls).parameters
    given = {key: value for key, value in dims.items() if key in parameters}
    return cls(**given, config=override(cls.Config(), settings, name))


def only_pool(objectives: Mapping[str, Objective]) -> nn.Module | None:
    """Return the pool that makes the image token, if an objective has one; raise ValueError if several do."""
    pools = {name: pool for name, o in objectives.items() if (pool := o.pool()) is not None}
    if len(pools) > 1:
        raise ValueError(f"{' and '.join(pools)} each have a pool for the image token; use one of them")
    return next(iter(pools.values()), None)


def all_heads(objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
    """Return the heads of all objectives by name; raise ValueError if two have the same name."""
    heads: dict[str, nn.Module] = {}
    for name, objective in objectives.items():
        new = objective.heads()
        if twice := heads.keys() & new.keys():
            raise ValueError(f"{name} has a head {', '.join(twice)!r} that another method or objective has too")
        heads |= new
    return heads
