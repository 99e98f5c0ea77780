"""Names that are checked first are those that exist."""

from __future__ import annotations

from selfpatch.config import names
from selfpatch.methods import registry
from selfpatch.models.backbones import build


def test_the_tables_have_these_names() -> None:
    assert set(names.METHODS) == set(registry.METHODS)
    assert set(names.OBJECTIVES) == set(registry.OBJECTIVES)
    assert set(names.MODELS) == set(build.MODELS)
