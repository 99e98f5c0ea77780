"""Methods and objectives from their settings, the keyword arguments of their constructors; pool and heads of all."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from selfpatch.config.schema import checked
from selfpatch.core.types import Objective


def make_component(cls: type[Objective], name: str, settings: Mapping[str, Any], facts: Mapping[str, int]) -> Objective:
    """A method or objective; its settings are the keyword arguments of its constructor."""
    accepted = inspect.signature(cls).parameters
    offered = {key: p.default for key, p in accepted.items() if key not in facts}
    for key in settings:
        if key not in offered:
            raise ValueError(f"{name} has no setting {key!r}; it has: {', '.join(offered)}")
    kinds = get_type_hints(cls.__init__)
    own = {key: _setting(value, kinds[key], offered[key], f"{name}.{key}") for key, value in settings.items()}
    return cls(**{k: v for k, v in facts.items() if k in accepted}, **own)


def _setting(value: Any, kind: Any, default: Any, name: str) -> Any:
    """A setting of a component as its constructor takes it: counts from 1 on, other numbers from 0 on; of the words it
    knows the constructor itself speaks.
    """
    for alternative in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if alternative is NoneType and value is None:
            return None
        if get_origin(alternative) is Literal and isinstance(value, str):
            return value
        with contextlib.suppress(ValueError):
            converted = checked(value, alternative, name)
            is_number = isinstance(converted, int | float) and not isinstance(converted, bool)
            if not is_number or _in_range(converted, alternative, name):
                return converted
    raise ValueError(f"{name} is {value!r}; a value like {default!r} is needed")


def _in_range(number: float, kind: type, name: str) -> bool:
    """Counts begin at 1; nothing can be divided by a temperature of 0."""
    if name.endswith(("temp", "epsilon")):
        return 0 < number < math.inf
    return (1 if kind is int else 0) <= number < math.inf


def only_pool(objectives: Mapping[str, Objective]) -> nn.Module | None:
    pools = {name: pool for name, o in objectives.items() if (pool := o.pool()) is not None}
    if len(pools) > 1:
        raise ValueError(f"{' and '.join(pools)} each bring a pool for the image token; only one can")
    return next(iter(pools.values()), None)


def all_heads(objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
    heads: dict[str, nn.Module] = {}
    for name, objective in objectives.items():
        own = objective.heads()
        twice = heads.keys() & own.keys()
        if twice:
            raise ValueError(f"{name} brings a head {', '.join(twice)!r} that another method or objective brings too")
        heads |= own
    return heads
