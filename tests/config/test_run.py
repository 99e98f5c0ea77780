"""Settings of a run: values laid over one another, and errors of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from selfpatch.config.parsing import parse_yaml
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.training.factory import make_student_teacher

RECIPES = Path(__file__).parents[2] / "src" / "selfpatch" / "recipes"


def test_nested_values_are_laid_over_what_is_there() -> None:
    base = RunConfig().override({"crops": {"num_local": 4, "flip": 0.25}, "selfpatch": {"k": 2}})
    config = base.override({"crops": {"num_local": 6}, "selfpatch": {"window": 5}, "epochs": 7})
    assert (config.crops.num_local, config.crops.flip, config.crops.global_size) == (6, 0.25, 224)
    assert config.components == {"selfpatch": {"k": 2, "window": 5}}
    assert config.epochs == 7.0
    assert (base.crops.num_local, base.components) == (4, {"selfpatch": {"k": 2}}), "the first one stays as it was"


def test_loss_weights_add_up() -> None:
    config = RunConfig().override({"loss_weights": {"patch": 0.2}}).override({"loss_weights": {"image": 2}})
    assert config.loss_weights == {"patch": 0.2, "image": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "epoch is not a setting; did you mean 'epochs'"),
        ({"crops": {"globl_size": 3}}, "crops.globl_size is not a setting; did you mean 'global_size'"),
        ({"optimizer": {"zzz": 3}}, "optimizer.zzz is not a setting; known are: name, momentum, base_lr, "),
        ({"crops": 3}, "crops is 3; give a mapping of settings"),
        ({"epochs": "many"}, "epochs is 'many'; use a number"),
        ({"batch_size": 2.5}, "batch_size is 2.5; use a whole number"),
        ({"batch_size": True}, "batch_size is True; use a number"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: auto, fp32, bf16"),
        ({"crops": {"global_scale": [0.1]}}, r"crops.global_scale is \[0.1\]; use 2 values"),
        ({"crops": {"global_scale": 0.1}}, "crops.global_scale is 0.1; use a list of values"),
        ({"allow_partial": "yes"}, "allow_partial is 'yes'; use true or false"),
        ({"loss_weights": 3}, "loss_weights is 3; use a mapping of names to values"),
        ({"data": None}, "data is None; use text"),
    ],
)
def test_mistakes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig().override(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (26, 5)),
        ({"epochs": 3}, (3, None)),
        ({"minutes": "2"}, (None, 2)),
        ({"minutes": 2, "epochs": 3}, (3, 2)),
        ({"minutes": None}, (26, None)),
        ({"model": "vit_small", "epochs": 3}, (3, None)),
    ],
)
def test_one_length_of_the_training_replaces_the_other(values: dict, expected: tuple) -> None:
    config = RunConfig().override({"epochs": 26, "minutes": 5}).override(values)
    assert (config.epochs, config.minutes) == expected


def test_numbers_are_read_as_people_write_them() -> None:
    values = parse_yaml(
        "optimizer: {base_lr: 1e-3, min_lr: 1e-6, warmup_epochs: 3}\nepochs: 10\ndata: 2012\nout: null", "x"
    )
    assert isinstance(values["optimizer"]["base_lr"], str), "YAML itself reads 1e-3 as text"
    config = RunConfig().override(values)
    assert (config.optimizer.base_lr, config.optimizer.min_lr, config.optimizer.warmup_epochs) == (1e-3, 1e-6, 3.0)
    assert isinstance(config.epochs, float)
    assert config.data == "2012"
    assert config.out is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0; use a number above 0"),
        ({"epochs": None}, "neither epochs nor minutes is given; set one of them"),
        ({"minutes": 0}, "minutes is 0; use a number above 0"),
        ({"minutes": 1e300}, r"minutes is 1e\+300; use 525600 or less"),
        ({"batch_size": -4}, "batch_size is -4; use a number above 0"),
        ({"batch_size": 10, "accumulate": 4}, "batch_size 10 cannot be split into 4 micro-batches"),
        ({"crops": {"local_scale": [0.5, 0.2]}}, r"crops.local_scale is \[0.5, 0.2\]; use \[low, high\]"),
        ({"crops": {"global_scale": [0.0, 1.0]}}, r"crops.global_scale is \[0.0, 1.0\]"),
        ({"crops": {"flip": 1.5}}, "crops.flip is 1.5; use 1 or less"),
        ({"crops": {"blur": [1, 2, 0]}}, r"crops.blur\[1\] is 2; use 1 or less"),
        ({"crops": {"num_local": -1}}, "crops.num_local is -1; use 0 or more"),
        ({"optimizer": {"teacher_temp": 0}}, "optimizer.teacher_temp is 0; use a number above 0"),
        ({"optimizer": {"teacher_momentum": 1.2}}, "optimizer.teacher_momentum is 1.2"),
    ],
)
def test_impossible_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig().override(values)


def test_saved_settings_come_back() -> None:
    config = RunConfig().override(
        {
            "method": "ibot",
            "optimizer": {"min_lr": 1e-7},
            "crops": {"global_scale": [0.4, 1]},
            "loss_weights": {"patch": 0.1},
            "selfpatch": {"k": 2, "border": "clip"},
            "data": "Fotos/März",
        }
    )
    assert RunConfig.from_saved(config.to_dict(), Path("config.yaml")) == config


def test_a_run_from_before_a_setting_does_what_it_did() -> None:
    config = RunConfig.from_saved({"epochs": 3}, Path("config.yaml"))
    assert (config.loader.render, config.packing) == ("plain", "never")


def test_a_moby_run_from_before_the_forms_of_schedules_keeps_its_own() -> None:
    old = {"warmup_epochs": 5, "weight_decay_on": "matrices_but_positions", "teacher_moves": "before_step"}
    optimizer = RunConfig.from_saved({"method": "moby", "optimizer": old}, Path("config.yaml")).optimizer
    assert optimizer.weight_decay_on == "matrices_but_positions"
    assert (optimizer.warmup_start_lr, optimizer.warmup_includes_peak, optimizer.lr_delay) == (0.0, True, 0)
    assert (optimizer.cosine_over, optimizer.update_interval) == ("steps_after_warmup", "step")


@pytest.mark.parametrize("settings", [{"epochs": "many"}, {"epocks": 3}])
def test_saved_settings_that_cannot_be_read_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"settings in run/config.yaml cannot be read"):
        RunConfig.from_saved(settings, Path("run/config.yaml"))


def test_plain_values_come_back_the_same() -> None:
    config = load_recipe("small-cpu").override(
        {"data": "photos", "selfpatch": {"k": 2}, "loss_weights": {"patch": 0.2}}
    )
    text = yaml.safe_dump(config.to_dict())
    assert RunConfig().override(yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dinosaur"}, "unknown method 'dinosaur'; use one of: densecl, dino, "),
        ({"objective": "patchself"}, "unknown objective 'patchself'; use one of: "),
        (
            {"selfpach": {"k": 2}},
            "nothing reads the settings of 'selfpach': .* are dino, selfpatch; did you mean 'selfpatch'",
        ),
        ({"objective": "none", "selfpatch": {"k": 2}}, "nothing reads the settings of 'selfpatch'"),
        ({"model": "swin_tiny", "patch_size": 8}, "patch_size is 8, but the model 'swin_tiny' has no such setting"),
        ({"model": "resnet50", "backbone": {"num_heads": 2}}, "backbone.num_heads is 2, but the model 'resnet50' has"),
        ({"method": "ibot", "model": "resnet50"}, "ibot hides patches .* resnet50 embeds no patches"),
        (
            {"backbone": {"frozen_blocks": 12}},
            "backbone.frozen_blocks is 12, but the network has 1 block; leave it out",
        ),
        ({"selfpatch": {"kk": 2}}, "selfpatch.kk is not a setting; did you mean 'k'"),
        ({"selfpatch": {"k": [2]}}, r"selfpatch.k is \[2\]; "),
        ({"selfpatch": {"head_norm": 1}}, "head_norm is 1; use true or false"),
        ({"selfpatch": {"dim": 8}}, "selfpatch.dim is not a setting"),
        ({"selfpatch": {"aggregation": "max"}}, "selfpatch.aggregation is 'max'; use one of: attention, mean"),
        (
            {"loss_weights": {"patches": 1}},
            "loss_weights names 'patches', which is no loss here; the losses are: image, patch",
        ),
        (
            {"crops": {"global_size": 225}},
            "patch size 16 does not divide the image side 225; use a multiple of 16, e.g. 224",
        ),
        ({"crops": {"local_size": 100}}, "patch size 16 does not divide the image side 100"),
        ({"backbone": {"num_heads": 5}}, "width 384 cannot be split into 5 attention heads"),
        ({"model": "vit_gigantic"}, "unknown model 'vit_gigantic'"),
        ({"model": "test_vit", "patch_size": 8}, "patch_size is 8, but the timm model 'test_vit' has its own"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_student_teacher(
            RunConfig().override({"backbone": {"depth": 1}} if "model" not in settings else {}).override(settings)
        )
