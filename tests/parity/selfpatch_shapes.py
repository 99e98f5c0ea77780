"""Replay of SelfPatch at the shapes of a ViT-S: matching, aggregation and losses, with weights from a seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfpatch.losses.dino import DINOConfig, DINOLoss
from selfpatch.losses.selfpatch import SelfPatchConfig, SelfPatchLoss, patch_targets
from selfpatch.models.heads import PrototypeHead
from selfpatch.models.pooling import ClassAttentionPool, PositivePool
from selfpatch.ops.neighbours import neighbour_similarity, neighbour_table, top_positives
from tests.parity.check import TIGHT, Check, compare, compare_exactly

BACKGROUND_SEEDS = {"global": 0, "local": 1}
STUDENT_SEEDS = {"global": 2, "local": 3}
POOL_SEED, CENTER_SEED, PATCH_CENTER_SEED = 10, 30, 31
HEAD_SEEDS = {"student cls": 20, "student patch": 21, "teacher cls": 22, "teacher patch": 23}
TEACHER_TEMP, PATCH_WEIGHT = 0.04, 0.1


@dataclass(frozen=True)
class _Setting:
    """Settings of one variant, `window W, k K, blocks D`."""

    name: str
    config: SelfPatchConfig
    blocks: int

    @classmethod
    def of(cls, name: str) -> _Setting:
        window, k, blocks = re.fullmatch(r"window (\w+), k (\d+), blocks (\d+)", name).groups()
        config = SelfPatchConfig(window="all" if window == "all" else int(window), k=int(k))
        return cls(name, config, int(blocks))


def replay_selfpatch_shapes(bundle: Path) -> Iterator[Check]:
    """Replay every variant of window, number of positives and number of aggregation blocks."""
    record, tensors = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    run = _Replay(record, tensors)
    for name in ("global", "local"):
        yield _sums(f"x_{name}", [run.teacher[name].double().sum()], [record["checksums"][f"x_{name}"]])
    yield from run.student_tokens()
    for variant, expected in record["variants"].items():
        setting = _Setting.of(variant)
        for name in ("global", "local"):
            yield from run.matching(setting, name, expected[name])
        if "loss" in expected:
            yield from run.losses(setting, expected["loss"])


class _Replay:
    """Seeded features and weights, and the recorded tensors."""

    def __init__(self, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.record, self.tensors, self.seed, shapes = record, tensors, record["seed"], record["shapes"]
        self.dim, self.num_heads, self.images = shapes["width"], shapes["heads"], shapes["images"]
        self.grids = dict(zip(("global", "local"), shapes["grids"], strict=True))
        self.views = {name: shapes[f"{name}_views"] for name in self.grids}
        self.teacher = {name: self._features(seed, name) for name, seed in BACKGROUND_SEEDS.items()}
        self.student = {
            name: self.teacher[name] + 0.3 * self._features(seed, name) for name, seed in STUDENT_SEEDS.items()
        }

    def _rng(self, offset: int) -> np.random.RandomState:
        return np.random.RandomState(self.seed + offset)

    def _features(self, offset: int, name: str) -> Tensor:
        """Return features [V*B, N, D] with regions of similar patches."""
        r, n, g = self._rng(offset), self.views[name] * self.images, self.grids[name]
        prototypes = r.standard_normal((6, self.dim))
        chosen, keep = r.randint(0, 6, (n, g, g)), r.random_sample((n, g, g)) < 0.5
        for column in range(1, g):
            chosen[..., column] = np.where(keep[..., column], chosen[..., column - 1], chosen[..., column])
        noise = 1.2 * r.standard_normal((n, g, g, self.dim)) + 0.5 * r.standard_normal((n, 1, 1, self.dim))
        return torch.from_numpy((prototypes[chosen] + noise).astype(np.float32)).flatten(1, 2)

    def _fill(self, module: nn.Module, offset: int) -> None:
        """Fill a pool or head tensor by tensor; the order of our state dict is that of the released code."""
        r = self._rng(offset)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name.endswith("weight_g"):
                    continue
                z = torch.from_numpy(r.standard_normal(tuple(tensor.shape)).astype(np.float32))
                is_norm = re.search(r"norm\d?\.weight$", name)
                tensor.copy_(1 + 0.1 * z if is_norm else 0.05 * z)
                if name == "last_layer.weight_v":
                    tensor[:, :8] *= 6
                if name == "mlp.4.weight":
                    tensor[:8] *= 6

    def _pool(self, blocks: int) -> ClassAttentionPool:
        pool = ClassAttentionPool(self.dim, self.num_heads, blocks=blocks)
        self._fill(pool, POOL_SEED)
        return pool

    @torch.no_grad()
    def student_tokens(self) -> Iterator[Check]:
        pool, patches = self._pool(2), self.student["global"]
        rows = self.record["rows"]["global"]
        expected = self.tensors["student_tokens_global_rows"]
        yield compare("student LN f", pool.norm(patches[0, rows[: len(expected)]]), expected, TIGHT)
        expected = self.tensors["student_image_tokens_global"]
        yield compare("student y(0)", pool(patches[: len(expected)]), expected, TIGHT)

    @torch.no_grad()
    def matching(self, setting: _Setting, name: str, expected: dict[str, Any]) -> Iterator[Check]:
        """Compare similarities, positives, targets and image tokens of the teacher."""
        g, title, patches = self.grids[name], f"{setting.name}, {name}", self.teacher[name]
        table = neighbour_table(g, g, setting.config.window, setting.config.border)
        num_neighbours = torch.tensor(table.indices.shape[1])
        yield compare_exactly(f"{title}: neighbours", num_neighbours, torch.tensor(expected["neighbours"]))
        similarity = neighbour_similarity(patches, table)
        yield _sums(f"{title}: similarities", [similarity.double().sum()], [expected["similarity_sum"]])
        first = expected["similarity_of_patch_0_first_8"]
        yield compare(f"{title}: similarities of patch 0", similarity[0, 0, : len(first)], torch.tensor(first), TIGHT)
        positives = top_positives(patches, setting.config.k, table).indices
        recorded = self.tensors[f"{setting.name}.positives_{name}"].long()
        yield compare_exactly(f"{title}: positives", positives, recorded)
        pool = self._pool(setting.blocks)
        targets, image = patch_targets(patches, (g, g), pool, setting.config), pool(patches)
        for part, got in (("sum", targets.double().sum()), ("abs_sum", targets.double().abs().sum())):
            scale = expected["targets_abs_sum"]  # the sum itself cancels
            yield Check(f"{title}: targets, {part}", abs(float(got) - expected[f"targets_{part}"]) / scale, TIGHT)
        yield compare(
            f"{title}: sums of y(0)", image.double().sum(1), torch.tensor(expected["image_token_sums"]).double(), TIGHT
        )
        if (rows := self.tensors.get(f"{setting.name}.targets_{name}")) is not None:
            indices = self.record["rows"][name][: len(rows)]
            yield compare(f"{title}: targets", targets[0, indices], rows, TIGHT)
        if (tokens := self.tensors.get(f"{setting.name}.image_tokens_{name}")) is not None:
            yield compare(f"{title}: y(0)", image[: len(tokens)], tokens, TIGHT)

    def losses(self, setting: _Setting, expected: dict[str, Any]) -> Iterator[Check]:
        """Compare the losses of image tokens and patches, and the centres after the step."""
        criterion = SelfPatchLoss(self.dim, self.num_heads, setting.config)
        for role, side in (("student", criterion.student), ("teacher", criterion.teacher)):
            self._fill(side["pool"], POOL_SEED)
            self._fill(side["head"], HEAD_SEEDS[f"{role} patch"])
        patch_loss = criterion.agreement.loss
        assert patch_loss is not None
        _set(patch_loss.center.center, self._rng(PATCH_CENTER_SEED))
        students, teachers = list(self.student.values()), list(self.teacher.values())
        grids = [(g, g) for g in self.grids.values()]
        with torch.no_grad():
            patch = criterion(students, teachers, grids, TEACHER_TEMP)
            pool = cast(PositivePool, criterion.teacher["pool"])
            targets = patch_targets(teachers[0], grids[0], pool, setting.config)
            logits = criterion.teacher["head"](targets).logits()  # of the global views
        image, center = self._image_loss
        title = setting.name
        yield compare(f"{title}: patch loss", patch, expected["patch"], TIGHT)
        yield compare(f"{title}: image loss", image, expected["image"], TIGHT)
        yield compare(f"{title}: loss", image + PATCH_WEIGHT * patch, expected["loss"], TIGHT)
        std = logits.double().std()
        yield compare(f"{title}: std of patch logits", std, expected["teacher_patch_logits_std"], TIGHT)
        patch_loss.update()
        yield from _center(f"{title}: center", center, expected["center_after"])
        yield from _center(f"{title}: patch_center", patch_loss.center.center, expected["patch_center_after"])

    @cached_property
    @torch.no_grad()
    def _image_loss(self) -> tuple[Tensor, Tensor]:
        """DINO's loss between the image tokens of student and teacher, and its centre after the step.

        Two blocks aggregate; matching does not touch the image tokens.
        """
        config, pool = DINOConfig(), self._pool(2)
        loss, scores = DINOLoss(config), []
        _set(loss.center.center, self._rng(CENTER_SEED))
        for role, features in (("student", self.student), ("teacher", self.teacher)):
            head = PrototypeHead(self.dim, config)
            self._fill(head, HEAD_SEEDS[f"{role} cls"])
            tokens = torch.cat([pool(x).unflatten(0, (-1, self.images)) for x in features.values()])  # [V, B, D]
            scores.append(head(tokens))
        value = loss(*scores, TEACHER_TEMP, num_global=self.views["global"])
        loss.update()
        return value, loss.center.center


def _set(center: Tensor, rng: np.random.RandomState) -> None:
    center.copy_(torch.from_numpy((0.02 * rng.standard_normal(len(center))).astype(np.float32)))


def _sums(name: str, got: list[Any], expected: list[float]) -> Check:
    return compare(name, torch.stack([torch.as_tensor(x) for x in got]), torch.tensor(expected).double(), TIGHT)


def _center(name: str, center: Tensor, expected: dict[str, Any]) -> Iterator[Check]:
    yield compare(
        f"{name}, first entries", center[: len(expected["first_8"])], torch.tensor(expected["first_8"]), TIGHT
    )
    yield _sums(f"{name}, norm", [center.double().norm()], [expected["norm"]])
    # The sum of a centre cancels; it is compared with what its entries could add up to.
    scale = expected["norm"] * len(center) ** 0.5
    yield Check(f"{name}, sum", abs(float(center.double().sum()) - expected["sum"]) / scale, TIGHT)
