"""No name that timm takes is refused."""

from __future__ import annotations

import timm

from selfpatch.models.backbones.timm_names import may_be_timm_model


def test_names_that_timm_takes_are_found() -> None:
    names = ["vit_small_patch14_dinov2.lvd142m", "resnet50", "convnext_tiny", "vit_tiny_patch16_224_in21k"]
    assert all(timm.is_model(name) for name in names)
    assert all(map(may_be_timm_model, names))


def test_other_names_are_not() -> None:
    assert not any(map(may_be_timm_model, ["vit_smal", "vit_small_patch14_dinov", "resnet50x", "vit(", ""]))
