"""Settings classes: checked types and ranges, errors in one sentence, plain values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt, MinLen
from pydantic import PositiveInt

from selfpatch.config.schema import (
    DataName,
    Fraction,
    Name,
    Size,
    checked,
    height_and_width,
    override,
    plain,
    settings,
    size_text,
)


@settings
class Inner:
    """A section."""

    rate: Fraction = 0.5
    sides: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (1, 2)


@settings
class Outer:
    """Settings of every type."""

    steps: Annotated[int, Gt(0)] = 10
    lr: float = 0.1
    name: str = "x"
    fast: bool = False
    mode: Literal["a", "b"] = "a"
    window: PositiveInt | Literal["all"] = 3
    limit: PositiveInt | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    crop: Size = 224
    weights: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.pair[0] > self.pair[1]:
            raise ValueError(f"pair is {list(self.pair)}; use [low, high]")


def test_a_size_is_one_number_or_height_and_width() -> None:
    square, wide = Outer(crop="96"), Outer(crop=[96, 192])  # type: ignore[arg-type]
    assert (square.crop, wide.crop, plain(wide)["crop"]) == (96, (96, 192), [96, 192])
    assert override(square, {"crop": plain(wide)["crop"]}) == wide
    assert [height_and_width(outer.crop) for outer in (square, wide)] == [(96, 96), (96, 192)]
    assert [size_text(size) for size in (96, (96, 96), (96, 192))] == ["96", "96", "96 x 192"]


def test_values_are_converted_and_frozen() -> None:
    outer = Outer(lr="1e-3", name=2012, pair=[0, 1], inner=Inner(sides=[3]))  # type: ignore[arg-type]
    assert (outer.lr, outer.name, outer.pair, outer.inner.sides) == (1e-3, "2012", (0.0, 1.0), (3,))
    with pytest.raises(FrozenInstanceError):
        outer.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps is 0; use a number above 0"),
        ({"steps": 2.5}, "steps is 2.5; use a whole number"),
        ({"steps": True}, "steps is True; use a number"),
        ({"crop": 0}, "crop is 0; use one whole number above 0, or two: height and width"),
        ({"crop": [224, 0]}, "crop is [224, 0]; use one whole number above 0, or two: height and width"),
        ({"crop": [224]}, "crop is [224]; use one whole number above 0, or two: height and width"),
        ({"crop": [True, 3]}, "crop is [True, 3]; use a number"),
        ({"lr": "fast"}, "lr is 'fast'; use a number"),
        ({"lr": float("nan")}, "lr is nan; use a finite number"),
        ({"name": None}, "name is None; use text"),
        ({"fast": 1}, "fast is 1; use true or false"),
        ({"fast": "maybe"}, "fast is 'maybe'; use true or false"),
        ({"mode": "c"}, "mode is 'c'; use one of: a, b"),
        ({"window": 0}, "window is 0; use a number above 0 or use one of: all"),
        ({"limit": "x"}, "limit is 'x'; use a whole number"),
        ({"pair": 3}, "pair is 3; use a list of values, as [a, b]"),
        ({"pair": [3]}, "pair is [3]; use 2 values"),
        ({"pair": [1, 2, 3]}, "pair is [1, 2, 3]; use 2 values"),
        ({"pair": [0, True]}, "pair is [0, True]; use a number"),
        ({"pair": [2, 1]}, "pair is [2.0, 1.0]; use [low, high]"),
        ({"weights": {"image": "heavy"}}, "weights.image is 'heavy'; use a number"),
        ({"weights": 3}, "weights is 3; use a mapping of names to values"),
        ({"inner": {"rate": 2}}, "inner.rate is 2; use 1 or less"),
        ({"inner": {"sides": [1, 0]}}, "inner.sides[1] is 0; use a number above 0"),
        ({"inner": {"sides": []}}, "inner.sides is []; use 1 or more values"),
        ({"inner": 3}, "inner is 3; give a mapping of settings"),
        ({"step": 3}, "step is not a setting; did you mean 'steps'?"),
        ({"inner": {"zzz": 3}}, "inner.zzz is not a setting; known are: rate, sides"),
    ],
)
def test_mistakes_are_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        override(Outer(), values)
    with pytest.raises(ValueError, match=f"^{re.escape(f'davis.{sentence}')}$"):
        override(Outer(), values, "davis")


def test_unknown_arguments_of_a_constructor_name_the_nearest_setting() -> None:
    with pytest.raises(ValueError, match="stepps is not a setting; did you mean 'steps'"):
        Outer(stepps=3)  # type: ignore[call-arg]


def test_override_changes_only_what_is_given() -> None:
    base = Outer(weights={"image": 1.0}, inner=Inner(rate=0.25))
    changed = override(base, {"weights": {"patch": 0.1}, "inner": {"sides": [5]}})
    assert changed == Outer(weights={"image": 1.0, "patch": 0.1}, inner=Inner(rate=0.25, sides=(5,)))
    assert base.weights == {"image": 1.0}


def test_plain_values_make_the_same_record() -> None:
    record = Outer(window="all", inner=Inner(sides=(4, 5)))
    values = plain(record)
    assert values["inner"] == {"rate": 0.5, "sides": [4, 5]}
    assert override(Outer(), values) == record


def test_single_values_are_checked_by_the_same_rules() -> None:
    assert checked([0, 1], tuple[int, ...], "seeds") == (0, 1)
    with pytest.raises(ValueError, match=r"^seeds\[1\] is 'x'; use a whole number$"):
        checked([0, "x"], tuple[int, ...], "seeds")
    with pytest.raises(ValueError, match=r"^seeds is True; use a number$"):
        checked(True, int, "seeds")


@settings
class Names:
    """Names of files."""

    data: DataName = "photos"
    out: Name = "run"


def test_a_name_that_is_not_utf8_is_read_but_not_written() -> None:
    raw = os.fsdecode(b"caf\xe9")
    assert Names(data=raw).data == raw
    assert override(Names(), {"data": raw}).data == raw
    with pytest.raises(ValueError, match=r"^out is 'caf\\udce9'; use a name in UTF-8, i.e. rename it$"):
        Names(out=raw)
    for name in ("data", "out"):
        with pytest.raises(ValueError, match=f"^{name} is ''; name something"):
            Names(**{name: ""})
