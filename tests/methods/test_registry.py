"""The tables of methods and objectives."""

from __future__ import annotations

import dataclasses

import pytest

from selfpatch.core.types import Objective
from selfpatch.methods.registry import METHODS, OBJECTIVES, find_objective


@pytest.mark.parametrize(("table", "kind"), [(METHODS, "method"), (OBJECTIVES, "objective")])
def test_every_name_leads_to_an_objective_with_settings(table: dict[str, type[Objective]], kind: str) -> None:
    for name in table:
        found = find_objective(table, name, kind)
        assert issubclass(found, Objective)
        assert dataclasses.is_dataclass(found.Config())
    with pytest.raises(ValueError, match=f"unknown {kind} 'nothing'; use one of: {', '.join(sorted(table))}, none"):
        find_objective(table, "nothing", kind)
