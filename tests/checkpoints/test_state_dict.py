"""The state dict inside a checkpoint: the wrappings that people save, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.state_dict import check_size, find_state_dict
from tests.helpers.released_forms import (
    VIT,
    State,
    assert_same_features,
    numbers,
    prefixed,
    random_backbone,
    random_state,
    trunk_state,
)

OTHER = random_state(VIT)

FORMS: dict[str, Callable[[State], Any]] = {
    "teacher_backbone. and student_backbone.": lambda t: {
        "state_dict": {
            **prefixed("teacher_backbone.", t),
            **prefixed("student_backbone.", OTHER),
            **numbers("teacher_head.mlp.0.weight", "student_head.last_layer.weight", "criterion.center"),
        }
    },
    "lightly's backbone_momentum.": lambda t: {
        "state_dict": {
            **prefixed("backbone_momentum.", t),
            **prefixed("backbone.", OTHER),
            **numbers("projection_head.layers.0.weight", "projection_head_momentum.layers.0.weight"),
            **numbers("prediction_head.layers.0.weight"),
        }
    },
    "compiled within": lambda t: {"model": {f"backbone._orig_mod.{key}": x for key, x in t.items()}},
    "compiled blocks, with DDP": lambda t: {
        "module." + key.replace(".attn.", "._orig_mod.attn."): x for key, x in t.items()
    },
    "FSDP": lambda t: {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): x for key, x in t.items()},
    "Lightning, model.": lambda t: {"state_dict": prefixed("model.", t), "epoch": 3, "callbacks": {}},
    "Lightning, net.": lambda t: {"state_dict": prefixed("net.", t), "hyper_parameters": {"lr": 0.1}},
    "Lightning, student.backbone. and teacher.backbone.": lambda t: {
        "state_dict": {**prefixed("student.backbone.", OTHER), **prefixed("teacher.backbone.", t)}
    },
    "nested teacher": lambda t: {"teacher": {"backbone": t, "head": numbers("a")}, "student": {"backbone": OTHER}},
    "nested in a model": lambda t: {"model": {"teacher": t, "student": OTHER}, "optimizer": {"state": {}}},
    "state dicts by side": lambda t: {"student_state_dict": OTHER, "teacher_state_dict": t},
    "I-JEPA's target_encoder": lambda t: {"encoder": OTHER, "target_encoder": prefixed("module.", t), "opt": {}},
    "model and average": lambda t: {"model": OTHER, "model_ema": t, "ema": 0.999},
    "timm's average": lambda t: {"state_dict": OTHER, "state_dict_ema": t, "arch": "vit"},
    "torch's AveragedModel": lambda t: {**prefixed("module.", t), "n_averaged": torch.tensor(3)},
    "DeepSpeed": lambda t: {"module": t, "dp_world_size": 8},
    "under an unknown name": lambda t: {"my_vit": t, "other": {"lr": 0.1}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_found_in_every_form(tmp_path: Path, form: str) -> None:
    backbone = random_backbone(VIT)
    torch.save(FORMS[form](trunk_state(backbone)), tmp_path / "w.pth")
    encoder, report = load_encoder(str(tmp_path / "w.pth"))
    assert_same_features(encoder, backbone)
    assert not report.unexpected


def test_the_student_is_found_on_request(tmp_path: Path) -> None:
    backbone = random_backbone(VIT)
    own = trunk_state(backbone)
    contents = [
        {**prefixed("teacher_backbone.", OTHER), **prefixed("student_backbone.", own)},
        {"student_state_dict": own, "teacher_state_dict": OTHER},
        {"encoder": own, "target_encoder": OTHER},
    ]
    for content in contents:
        torch.save(content, tmp_path / "w.pth")
        assert_same_features(load_encoder(str(tmp_path / "w.pth"), LoadConfig(side="student"))[0], backbone)


def looped() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def refused() -> dict[str, tuple[Any, str]]:
    """Contents by name, and what is said of them."""
    plain = trunk_state(random_backbone(VIT))
    sparse, odd = plain["norm.weight"].to_sparse(), plain["norm.weight"].to(torch.complex64)
    repeated = {f"extra.{i}": plain["patch_embed.proj.weight"] for i in range(400)}
    return {
        "self-referring": (looped(), "holds no state dict"),
        "a list": ([1, 2], "holds no state dict"),
        "a tensor": (torch.zeros(3), "holds no state dict"),
        "numbers as keys": ({"model": {0: torch.zeros(3)}}, "under a int, which is no text"),
        "a tuple as key": ({("a", "b"): torch.zeros(3)}, "under a tuple, which is no text"),
        "the same key twice": ({**plain, "module.norm.weight": torch.ones(128)}, r"holds 'norm.weight' twice"),
        "two networks": ({"first": plain, "second": plain}, "holds 2 networks, 'first' and 'second'"),
        "sparse": ({**plain, "norm.weight": sparse}, "norm.weight is sparse"),
        "complex": ({**plain, "norm.weight": odd}, "norm.weight is complex"),
        "meta": ({**plain, "norm.weight": torch.zeros(128, device="meta")}, "norm.weight is empty of values"),
        "whole numbers": ({**plain, "norm.weight": torch.ones(128, dtype=torch.int64)}, "is torch.int64, and torch.fl"),
        "one value as many": ({**plain, "pos_embed": torch.zeros(1).expand(1, 10, 128)}, "more values than the file"),
        "one storage for many": ({**plain, **repeated}, "tensors claim .* bytes, and the file has"),
        "a run without a network": ({"pretrainer": None, "shape": {"embed_dim": 128}}, "holds no state dict"),
        "a run with tensors in a list": ({"pretrainer": [torch.ones(3)], "shape": {}}, "holds no state dict"),
        "a run of an unknown family": (
            {"pretrainer": prefixed("teacher.backbone.trunk.", plain), "shape": {"family": "cnn"}},
            "family is 'cnn'; use one of: vit, swin, resnet",
        ),
        "a run with text as shape": ({"pretrainer": prefixed("teacher.", plain), "shape": "vit"}, "does not describe"),
    }


@pytest.mark.parametrize("name", refused())
def test_odd_contents_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = refused()[name]
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth.*{message}") as error:
        load_encoder(str(tmp_path / "odd.pth"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_refused() -> None:
    tensor = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"w: a is quantized; save it as a dense tensor of floats"):
        find_state_dict({"a": tensor}, "teacher", "w")


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfpatch.checkpoints.state_dict.MAX_TENSORS", 3)
    with pytest.raises(ValueError, match="holds 4 tensors"):
        find_state_dict({str(i): torch.zeros(1) for i in range(4)}, "teacher", "w")


def test_shared_prototypes_are_no_false_claim() -> None:
    tensor = torch.zeros(1000)
    check_size({"a": tensor, "b": tensor}, 4200, "w")
