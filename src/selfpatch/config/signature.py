"""Signatures that name every setting, for tab completion and `help`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


class _FromRecipe:
    def __repr__(self) -> str:
        return "<from the recipe>"


def signature_with_settings(function: Callable[..., Any], kind: type) -> inspect.Signature:
    """Return the signature of a function with a keyword for each field of a settings class in front of `**settings`.

    Args:
        function: a function whose last parameter is `**settings`.
        kind: dataclass of the settings.
    """
    *own, others = inspect.signature(function).parameters.values()
    taken = {parameter.name for parameter in own}
    hints = get_type_hints(kind)
    named = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_FromRecipe(), annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
        if field.name not in taken
    ]
    return inspect.signature(function).replace(parameters=[*own, *named, others])
