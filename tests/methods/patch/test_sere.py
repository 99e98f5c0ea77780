"""SERE: the pairs and what is averaged over them, which heads there are, and the losses of the released code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses.sere import SEREConfig
from selfpatch.methods.patch.sere import SERE, tokens_by_view
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.branch import Branch
from selfpatch.models.layers.ema import ema_update
from selfpatch.ops.images import normalise
from selfpatch.ops.relation import (
    channel_relation,
    channel_relation_loss_reference,
    overlap_grids,
    relation_target,
    sample_patches,
    spatial_relation,
    spatial_relation_loss_reference,
)
from selfpatch.training.student_teacher import StudentTeacher
from tests.helpers.released_forms import to_branch_keys
from tests.helpers.tiny import hyperparameters

DIM, HEADS = 12, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed))


def boxes(views: int, batch: int) -> Tensor:
    """Crops that mostly overlap; some are flipped."""
    generator = torch.manual_seed(3)
    corner = torch.randint(0, 60, (views, batch, 2), generator=generator)
    size = torch.randint(50, 150, (views, batch, 2), generator=generator)
    flipped = torch.randint(0, 2, (views, batch, 1), generator=generator)
    return torch.cat([corner, size, flipped], -1).float()


def views_of(num_global: int, num_local: int, batch: int, sizes: tuple[int, int] = (16, 12)) -> Views:
    def crops(count: int, size: int) -> Tensor:
        return torch.randint(256, (count, batch, 3, size, size), generator=torch.manual_seed(size), dtype=torch.uint8)

    local = crops(num_local, sizes[1]) if num_local else None
    box = boxes(num_global + num_local, batch)
    return Views(crops(num_global, sizes[0]), local, box, torch.arange(batch))


def encoding(views: Views, heads: dict[str, nn.Module], seed: int, side: int = 4, local_side: int = 3) -> EncoderOutput:
    """Random tokens in place of a backbone's."""
    G, B = views.num_global, views.batch_size
    maps = [random(G * B, side, side, DIM, seed=seed)]
    if views.local_crops is not None:
        maps.append(random(len(views.local_crops) * B, local_side, local_side, DIM, seed=seed + 1))
    tokens = tuple(Tokens(None, torch.full_like(x, torch.nan), x) for x in maps)  # the normed tokens are never used
    return EncoderOutput(random(len(views.boxes), B, DIM), tokens, heads, None)


def heads_of(objective: SERE, seed: int) -> dict[str, nn.Module]:
    heads = objective.heads()
    generator = torch.manual_seed(seed)
    for head in heads.values():
        for parameter in head.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return heads


def test_every_pair_of_views_counts_the_same() -> None:
    """The plain double loop over views, with three global crops, against the losses that batch their pairs."""
    G, L, B = 3, 2, 4
    config = SEREConfig(overlap_size=(5, 7), local_overlap_size=4, channel_scale=2.0, local_channel_scale=3.0)
    objective = SERE(DIM, HEADS, L, config)
    views = views_of(G, L, B)
    student = encoding(views, heads_of(objective, seed=1), seed=1)
    teacher = encoding(views, heads_of(objective, seed=2), seed=5)
    pairs: dict[str, list[Tensor]] = {"spatial": [], "channel": []}
    for kind, losses in pairs.items():
        own = [student.heads[f"{kind}_relation"](student.tokens_per_resolution[0].raw_patches)]
        own.append(student.heads[f"{kind}_relation_local"](student.tokens_per_resolution[1].raw_patches))
        of_views = [maps for group in own for maps in group.split(B)]  # of each view [B, h, w, D]
        targets = teacher.heads[f"{kind}_relation"].projection(teacher.tokens_per_resolution[0].raw_patches).split(B)
        for t in range(G):
            for s in range(G + L):
                if s == t:
                    continue
                if kind == "spatial":
                    grids = overlap_grids(views.boxes[s], views.boxes[t], (5, 7) if s < G else 4)
                    losses.append(spatial_relation_loss_reference(of_views[s], targets[t], *grids, HEADS, 0.5))
                else:
                    target = relation_target(channel_relation(targets[t].flatten(1, 2), 2.0), 0.1)
                    scale = 2.0 if s < G else 3.0
                    losses.append(channel_relation_loss_reference(of_views[s].flatten(1, 2), target, scale))
    losses = objective(student, teacher, views, hyperparameters())
    assert losses.keys() == pairs.keys()
    for kind, each in pairs.items():
        assert len(each) == G * (G - 1 + L)
        torch.testing.assert_close(losses[kind], torch.stack(each).mean())


def test_the_teachers_local_crops_change_nothing() -> None:
    objective = SERE(DIM, HEADS, 2, SEREConfig())
    views = views_of(2, 2, 3)
    student, teacher = (encoding(views, heads_of(objective, seed), seed) for seed in (1, 2))
    with_them = objective(student, teacher, views, hyperparameters())
    without = EncoderOutput(teacher.image[:2], teacher.tokens_per_resolution[:1], teacher.heads, None)
    for name, loss in objective(student, without, views, hyperparameters()).items():
        assert torch.equal(loss, with_them[name])


@pytest.mark.parametrize("relations", ["both", "spatial", "channel"])
@pytest.mark.parametrize("num_local", [0, 2])
def test_what_is_off_has_neither_heads_nor_a_loss(relations: Any, num_local: int) -> None:
    objective = SERE(DIM, HEADS, num_local, SEREConfig(relations=relations))
    kinds = ["spatial", "channel"] if relations == "both" else [relations]
    assert list(objective.loss_weights) == kinds
    places = ["", "_local"] if num_local else [""]
    assert set(objective.heads()) == {f"{kind}_relation{place}" for kind in kinds for place in places}
    views = views_of(2, num_local, 3)
    student, teacher = (encoding(views, heads_of(objective, seed), seed) for seed in (1, 2))
    assert list(objective(student, teacher, views, hyperparameters())) == kinds


def tiny_student_teacher(relations: Any = "both", num_local: int = 2) -> StudentTeacher:
    shape = ViTConfig(embed_dim=DIM, depth=1, num_heads=HEADS, patch_size=4, grid=4)
    torch.manual_seed(0)
    objective = SERE(DIM, HEADS, num_local, SEREConfig(relations=relations))
    student = Branch(build_backbone(shape), None, heads_of(objective, seed=1))
    with torch.no_grad():
        for parameter in student.backbone.parameters():
            parameter.add_(random(*parameter.shape), alpha=0.2)
    return StudentTeacher(student, {"sere": objective}, objective.loss_weights).train()


@pytest.mark.parametrize(("relations", "num_local"), [("both", 2), ("spatial", 2), ("channel", 2), ("both", 0)])
def test_every_parameter_of_the_heads_is_trained_and_the_teacher_is_not(relations: Any, num_local: int) -> None:
    student_teacher = tiny_student_teacher(relations, num_local)
    student_teacher(views_of(2, num_local, 4), hyperparameters())["loss"].backward()
    for name, parameter in student_teacher.student.heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert student_teacher.student.backbone.trunk.patch_embed.proj.weight.grad.any()
    assert all(parameter.grad is None for parameter in student_teacher.teacher.parameters())


def test_relations_are_in_float32_under_autocast() -> None:
    student_teacher, views = tiny_student_teacher(), views_of(2, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = student_teacher(views, hyperparameters())
    assert {loss.dtype for loss in output.values()} == {torch.float32}
    torch.testing.assert_close(output, student_teacher(views, hyperparameters()), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relations": "patch"}, "relations is 'patch'; use one of: spatial, channel, both"),
        ({"overlap_size": 1}, "overlap_size is 1; use 2 or more"),
        ({"local_overlap_size": 0}, "local_overlap_size is 0; use 2 or more"),
        ({"overlap_size": [13, 1]}, "overlap_size is .13, 1.; use 2 or more, or two such whole numbers: rows and"),
        ({"spatial_temp": 0.0}, "spatial_temp is 0.0; use a number above 0"),
        ({"channel_temp": float("nan")}, "channel_temp is nan; use a finite number"),
        ({"channel_scale": 0.0}, "channel_scale is 0.0; use a number above 0"),
        ({"local_channel_scale": -1.0}, "local_channel_scale is -1.0; use a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEREConfig(**settings)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 12 cannot be split into 5 heads"):
        SERE(DIM, 5, 2, SEREConfig())


def test_one_global_crop_is_too_few() -> None:
    objective, views = SERE(DIM, HEADS, 2, SEREConfig()), views_of(1, 2, 3)
    both = encoding(views, heads_of(objective, seed=1), seed=1)
    with pytest.raises(ValueError, match="only one; use at least 2"):
        objective(both, both, views, hyperparameters())


class Released:
    """Student and teacher of a bundle of the released code, without the image-level method."""

    def __init__(self, bundle: Path) -> None:
        record = json.loads((bundle / "trajectory.json").read_text())
        self.settings, self.steps = record["config"], record["steps"]
        self.tensors = load_file(bundle / "tensors.safetensors")
        c = self.settings
        self.objective = SERE(
            c["embed_dim"],
            c["num_heads"],
            c["local_crops"],
            SEREConfig(**{k: c[k] for k in ("spatial_temp", "channel_temp", "overlap_size", "local_overlap_size")}),
        )
        shape = ViTConfig(**{k: c[k] for k in ("embed_dim", "depth", "num_heads", "patch_size")})
        self.student = Branch(build_backbone(shape), None, self.objective.heads())
        self.teacher = self.student.make_teacher()
        checkpoint = torch.load(bundle / "initial.pth", weights_only=True)
        self.student.load_state_dict(_branch_state(checkpoint["student"]))
        self.teacher.load_state_dict(_branch_state(checkpoint["teacher"]))
        self.mask_token = checkpoint["student"]["module.backbone.masked_embed"]

    def views(self, step: int) -> Views:
        t = self.tensors
        crops = [t[f"step{step}.crop{v}"] for v in range(2 + self.settings["local_crops"])]
        masks = torch.stack([t[f"step{step}.mask{v}"] for v in range(2)])
        boxes = t[f"step{step}.boxes"].transpose(0, 1)
        return Views(torch.stack(crops[:2]), torch.stack(crops[2:]), boxes, torch.arange(len(crops[0])), masks)

    @torch.no_grad()
    def encode(self, views: Views) -> tuple[EncoderOutput, EncoderOutput]:
        assert views.local_crops is not None
        assert views.masks is not None
        masks = views.masks.flatten(0, 1).unsqueeze(-1)
        backbone = self.student.backbone
        crops = [normalise(x, backbone.mean, backbone.std) for x in (views.global_crops, views.local_crops)]

        def mask(_: nn.Module, __: Any, patches: Tensor) -> Tensor:
            return torch.where(masks, self.mask_token, patches) if patches.shape[1] == masks.shape[1] else patches

        hook = backbone.trunk.patch_embed.register_forward_hook(mask)
        student = self.student(crops)
        hook.remove()
        return student, self.teacher(crops[:1])

    def losses(self, step: int) -> dict[str, Tensor]:
        views = self.views(step)
        return self.objective(*self.encode(views), views, hyperparameters())


def _branch_state(released: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in released.items():
        name = name.removeprefix("module.")
        if re.search(r"^head\.|masked_embed$|running_|num_batches", name):
            continue
        name = name.replace("backbone.pixel_sere", "heads.spatial_relation")
        name = name.replace("backbone.channel_sere", "heads.channel_relation")
        state[name] = tensor.flatten(1) if name.endswith("predictor.0.weight") else tensor
    return to_branch_keys(state)


@pytest.fixture(params=["mini", "full"])
def released(request: pytest.FixtureRequest, golden_dir: Path) -> Released:
    if request.param == "mini":
        return Released(golden_dir / "mini" / "sere")
    return Released(request.getfixturevalue("full_golden_dir") / "sere")


def _check_losses(released: Released, step: int) -> None:
    losses, expected = released.losses(step), released.steps[step]
    for name in ("spatial", "channel"):
        assert losses[name].item() == pytest.approx(expected[f"{name}_relation_loss"], rel=1e-5)


def test_losses_are_those_of_the_released_code(released: Released) -> None:
    _check_losses(released, 0)


def test_so_are_they_where_crops_do_not_overlap(released: Released) -> None:
    """Some do not in step 1. The learning rate of step 0 is 0, so that only the teacher has moved by then."""
    assert released.steps[0]["lr"] == 0
    ema_update(released.teacher, released.student, released.steps[0]["teacher_momentum"])
    boxes = released.views(1).boxes
    assert any((overlap_grids(boxes[t], boxes[2:], 2)[0] > 1).any() for t in (0, 1))
    _check_losses(released, 1)


def test_grids_and_relations_are_those_of_the_released_code(released: Released) -> None:
    t, views = released.tensors, released.views(0)
    grids = {
        "global": overlap_grids(views.boxes[0], views.boxes[1], 13),
        "local0": overlap_grids(views.boxes[2], views.boxes[0], 6),
    }
    for name, pair in grids.items():
        for side, grid in zip(("query", "key"), pair, strict=True):
            torch.testing.assert_close(grid, t[f"step0.grid_{name}_{side}"], rtol=0, atol=1e-5)
    student, teacher = released.encode(views)
    heads = released.settings["num_heads"]
    tokens, targets = tokens_by_view(student, views, 2), tokens_by_view(teacher, views, 1)
    own, local = student.heads["spatial_relation"](tokens[0]), student.heads["spatial_relation_local"](tokens[1])
    query = grids["global"][0][:1]
    target = teacher.heads["spatial_relation"](*targets, teacher=True)
    relations = {
        "student_spatial_relation_sampled0": spatial_relation(sample_patches(own[0, :1], query), heads),
        "teacher_spatial_relation_sampled0": spatial_relation(sample_patches(target[0, :1], query), heads),
        "student_spatial_relation_local0": spatial_relation(local[0, :1].flatten(1, 2), heads),
    }
    own, local = student.heads["channel_relation"](tokens[0]), student.heads["channel_relation_local"](tokens[1])
    target = teacher.heads["channel_relation"](*targets, teacher=True)
    relations |= {
        "student_channel_relation": channel_relation(own.flatten(0, 1).flatten(1, 2), 14.0),
        "student_channel_relation_local": channel_relation(local.flatten(0, 1).flatten(1, 2), 6.0),
        "teacher_channel_relation": channel_relation(target.flatten(0, 1).flatten(1, 2), 14.0),
    }
    for name, relation in relations.items():
        expected = t[f"step0.{name}"].float()
        torch.testing.assert_close(relation, expected, rtol=0, atol=1e-3 * float(expected.abs().max()), msg=name)
