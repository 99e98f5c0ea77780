"""Settings of the segmentation methods: presets, ranges, and what a method does not have."""

from __future__ import annotations

from typing import Any

import pytest

from selfpatch.evaluation.segmentation.config import (
    FinetuneSegmentationConfig,
    FPNConfig,
    LinearSegmentationConfig,
    Method,
    SegmentationConfig,
)

assert SegmentationConfig.variants is not None
CLASSES = SegmentationConfig.variants[1]


@pytest.mark.parametrize("method", CLASSES)
def test_a_method_has_its_own_settings_and_its_first_preset_is_the_default(method: Method) -> None:
    config = SegmentationConfig.from_settings({"method": method})
    assert type(config) is CLASSES[method]
    assert config == CLASSES[method]()
    assert config.method == method
    if config.presets:
        assert config.recorded()["preset"] == next(iter(config.presets))


def test_linear_is_the_default_method() -> None:
    assert type(SegmentationConfig.from_settings({})) is LinearSegmentationConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"preset": "huge"}, "preset is 'huge'; use one of: leopart, neco, full, dinov3, small"),
        ({"preset": "small", "steps": 0}, "steps is 0; use a number above 0"),
        ({"warmup": 5}, "warmup is 5, but sgd trains without; leave it out"),
        ({"preset": "full", "warmup": -1}, "warmup is -1; use 0 or more"),
        ({"preset": "full", "lr": 0}, "lr is 0; use a number above 0"),
        ({"preset": "full", "test": "half"}, "test is 'half'; use one of: square, whole, slide"),
        ({"epochs": None}, "steps and epochs are None; use a number for one of them"),
        ({"method": "knn", "crop": 32}, "crop is not a setting; known are: limit, method, kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SegmentationConfig.from_settings(settings)


def test_the_settings_of_one_method_are_refused_for_another() -> None:
    with pytest.raises(ValueError, match="method is 'upernet', but FPNConfig is of 'fpn'"):
        FPNConfig(method="upernet")


def test_pictures_are_not_recorded() -> None:
    assert LinearSegmentationConfig(max_pictures=0).recorded() == LinearSegmentationConfig(max_pictures=9).recorded()


def test_learned_settings_are_those_of_the_training() -> None:
    first = LinearSegmentationConfig(steps=5)
    assert first.learned() == LinearSegmentationConfig(steps=5, test="whole", test_split="other", workers=3).learned()
    assert first.learned() != LinearSegmentationConfig(steps=5, lr=0.1).learned()


def test_the_presets_of_imagenet_s_and_voc_are_published_or_named_ours() -> None:
    def preset(method: str, name: str) -> Any:
        return SegmentationConfig.from_settings({"method": method, "preset": name})

    small, base, tuned = (preset("finetune", f"imagenet_s{end}") for end in ("", "_base", "_base_tuned"))
    assert [(c.lr, c.layer_decay) for c in (small, base, tuned)] == [(5e-4, 0.5), (5e-4, 0.6), (1e-4, 0.4)]
    for config in (small, base, tuned):
        assert (config.epochs, config.batch_size, config.crop, config.warmup_epochs) == (100, 256, 224, 5)
        assert (config.min_lr, config.weight_decay, config.drop_path, config.min_scale) == (1e-6, 0.05, 0.1, 0.14)
        assert (config.short_side, config.max_side) == (256, 1000)
    for ending in ("", "_small"):
        ade, voc = preset("upernet", f"ibot{ending}"), preset("upernet", f"voc{ending}")
        changed = {name for name, value in ade.recorded().items() if value != voc.recorded()[name]}
        assert changed == {"preset", "train_split", "steps"}
        assert (voc.train_split, voc.steps, voc.crop, voc.batch_size) == ("trainaug", 40_000, 512, 16)


def test_what_finetune_learns_depends_on_its_epochs_but_not_on_the_test() -> None:
    first = FinetuneSegmentationConfig(epochs=9)
    assert first.learned() == FinetuneSegmentationConfig(epochs=9, short_side=99, max_side=9).learned()
    assert first.learned() != FinetuneSegmentationConfig(epochs=10).learned()
    with pytest.raises(ValueError, match="warmup_epochs is 5 of 4 epochs; use fewer"):
        FinetuneSegmentationConfig(epochs=4)
