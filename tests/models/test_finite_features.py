"""Features that are not finite are found where they are made, without waiting for the newest batch of a device."""

from __future__ import annotations

import gc

import pytest
import torch

from selfpatch.models.finite_features import (
    FeatureCheck,
    NonFiniteFeatures,
    checked_features,
    requiring_finite_features,
)

IMAGES = torch.zeros(2, 3, 16, 24)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_is_enough(value: float) -> None:
    features = torch.randn(2, 5, 2, 3).movedim(1, -1)
    with requiring_finite_features("w.pth"):
        assert checked_features(features, IMAGES) is features
        features = features.clone()
        features[1, 1, 2, 4] = value
        with pytest.raises(NonFiniteFeatures, match=r"w.pth: the features of batch 2 \(2 x 24 x 16 pixels\) are not "):
            checked_features(features, IMAGES)


def test_nothing_is_checked_outside() -> None:
    broken = torch.tensor([torch.nan])
    assert checked_features(broken, IMAGES) is broken
    with requiring_finite_features("outer"):
        with (
            pytest.raises(NonFiniteFeatures, match="inner: the features of batch 1"),
            requiring_finite_features("inner"),
        ):
            checked_features(broken, IMAGES)
        checked_features(torch.zeros(3), IMAGES)
        with pytest.raises(NonFiniteFeatures, match="outer: the features of batch 2"):
            checked_features(broken, IMAGES)
    assert checked_features(broken, IMAGES) is broken


def test_large_and_empty_features_are_finite() -> None:
    with requiring_finite_features("w"):
        checked_features(torch.full((4, 1000), 3e38), IMAGES)
        checked_features(torch.zeros(0, 5), IMAGES)
        checked_features(torch.zeros(3, device="meta"), IMAGES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_is_named(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(NonFiniteFeatures, match=f"computed in {name}; use --precision float32"):
        FeatureCheck("w").add(torch.tensor([torch.inf], dtype=dtype), IMAGES)
    with torch.autocast("cpu", dtype), pytest.raises(NonFiniteFeatures, match=f"computed in {name}"):
        FeatureCheck("w").add(torch.tensor([torch.inf]), IMAGES)


def test_a_tensor_counts_once_and_is_not_kept() -> None:
    check = FeatureCheck("w")
    features = torch.zeros(3)
    for _ in range(3):
        check.add(features, IMAGES)
    with pytest.raises(NonFiniteFeatures, match="batch 2"):
        check.add(torch.tensor([torch.nan]), IMAGES)
    assert check._last is not None
    gc.collect()
    assert check._last() is None


def test_a_device_is_judged_one_batch_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag of a batch is read when the next one is there."""
    monkeypatch.setattr(FeatureCheck, "_at_once", staticmethod(lambda features: False))
    check = FeatureCheck("w")
    check.add(torch.tensor([torch.nan]), IMAGES)
    with pytest.raises(NonFiniteFeatures, match="batch 1"):
        check.add(torch.zeros(3), IMAGES)


def test_the_last_batch_of_a_device_is_judged_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCheck, "_at_once", staticmethod(lambda features: False))
    with pytest.raises(NonFiniteFeatures, match="batch 1"), requiring_finite_features("w"):
        checked_features(torch.tensor([torch.nan]), IMAGES)
