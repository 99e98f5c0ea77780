"""Objectives that compare a contained crop with the clean crop around it, point by point, without prototypes."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from selfpatch.config.matching import MatchingConfig
from selfpatch.config.schema import PointGrid, height_and_width, settings
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.aligned_contrast import AlignedContrastLoss
from selfpatch.losses.aligned_relations import AlignedRelationConfig, AlignedRelationLoss
from selfpatch.losses.paka import PaKALoss
from selfpatch.losses.selfpatch import mean_of_neighbours
from selfpatch.models.heads import MLPHeadConfig, mlp_head
from selfpatch.ops.neighbours import check_neighbours
from selfpatch.ops.roi_align import align_overlap


@settings
class PairGrid:
    """Grid on which the crops of a pair are compared."""

    overlap_size: PointGrid = 7
    """Side of the grid of points on which two crops are compared, in points, or rows and columns: [6, 12] suits
    contained crops that are twice as wide as high."""


@settings
class PaKAConfig(MLPHeadConfig, PairGrid):
    """Settings of PaKA."""

    head: bool = True
    """Compare the outputs of a head, as published; otherwise the patches themselves."""


@settings
class SEREPairsConfig(AlignedRelationConfig, PairGrid):
    """Settings of SERE's relations on pairs."""


@settings
class SelfPatchPairsConfig(MatchingConfig, AlignedRelationConfig, PairGrid):
    """Settings of SelfPatch's targets on pairs."""

    agreement: Literal["relations", "kernel", "contrast"] = "relations"
    """Loss between patches and targets: their `relations` to the teacher's patches, their `kernel` (PaKA), or the
    `contrast` of a patch's own target with those of the crop's other patches, at `student_temp`."""
    border: Literal["wrap", "clip"] = "clip"
    """Neighbourhood at the border of the crop: `clip` to the crop, or `wrap` to the opposite side."""


class PairObjective(Objective):
    """Base of objectives on pairs: a contained crop of the student, and the clean crop of the teacher around it.

        for each contained crop i:
            s, t = the student's map of crop i, the teacher's map of clean crop i mod P
            loss += compare(s, t RoIAligned to one grid over the region that both show)

    The patches are those after the final norm, which evaluations see.
    """

    needs: ClassVar[Needs] = Needs(global_crops=False, teacher_on_global_crops=False, pairs=True)

    def __init__(self, config: PairGrid) -> None:
        super().__init__()
        self.size = height_and_width(config.overlap_size)

    def check_grid(self, crops: str, h: int, w: int) -> None:
        """Raise ValueError if crops are a single patch, whose points are all alike."""
        if h * w < 2:
            raise ValueError("a crop is one patch only, which leaves nothing to compare; use a larger size")

    def aligned(self, student: EncoderOutput, clean_maps: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Return the patches of each pair on its grid.

        Args:
            student: the student's output.
            clean_maps: [P*B, h, w, D] the teacher's maps of the clean crops.
            views: positions of the crops.

        Returns:
            Patches [Q*B, N, D] of the student and of the teacher, and [Q*B, N] bool, True where the region is so small
            that they do not count.
        """
        assert student.pair_tokens is not None
        assert views.pair_boxes is not None
        maps = student.pair_tokens.patches.unflatten(0, (-1, views.batch_size))  # [Q, B, h', w', D]
        clean_maps = clean_maps.unflatten(0, (-1, views.batch_size))  # [P, B, h, w, D]
        clean_boxes, boxes = views.pair_boxes.split([len(clean_maps), len(maps)])
        around = torch.arange(len(maps), device=boxes.device) % len(clean_maps)
        clean_maps, clean_boxes = clean_maps[around], clean_boxes[around]
        s, t, overlaps = align_overlap(
            maps.flatten(0, 1), clean_maps.flatten(0, 1), boxes.flatten(0, 1), clean_boxes.flatten(0, 1), self.size
        )
        return s, t, ~overlaps[:, None].expand(-1, s.shape[1])


class PaKA(PairObjective):
    """Align the kernels of student and teacher (PaKA, arXiv 2509.05606): `PaKALoss`, after a head or without."""

    Config = PaKAConfig
    loss_weights: ClassVar = {"paka": 1.0}

    def __init__(self, dim: int, config: PaKAConfig) -> None:
        super().__init__(config)
        self.dim, self.config, self.loss = dim, config, PaKALoss()

    def heads(self) -> dict[str, nn.Module]:
        """Return the head D - hidden - hidden - bottleneck, if there is one."""
        return {"paka": mlp_head(self.dim, self.config)} if self.config.head else {}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"paka": loss}`."""
        assert teacher.pair_tokens is not None
        s, t, ignored = self.aligned(student, teacher.pair_tokens.patches, views)
        if self.config.head:
            s, t = student.heads["paka"](s), teacher.heads["paka"](t).detach()
        return {"paka": self.loss(s, t, ignored)}


class SEREPairs(PairObjective):
    """Align SERE's spatial relations of the patches themselves (arXiv 2206.05184): `AlignedRelationLoss`."""

    Config = SEREPairsConfig
    loss_weights: ClassVar = {"relations": 1.0}

    def __init__(self, config: SEREPairsConfig) -> None:
        super().__init__(config)
        self.loss = AlignedRelationLoss(config)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"relations": loss}`."""
        assert teacher.pair_tokens is not None
        return {"relations": self.loss(*self.aligned(student, teacher.pair_tokens.patches, views))}


class SelfPatchPairs(PairObjective):
    """Learn the relations that SelfPatch's targets have to the teacher's patches (arXiv 2206.07990).

    The target of a patch is the mean of its most similar neighbours in the teacher's clean crop. Departures from
    SelfPatch: the mean replaces the learned aggregation, and `AlignedRelationLoss` (or `PaKALoss` between patches and
    targets, for `agreement="kernel"`) replaces prototypes, so that nothing has to be learned before the targets are
    good. `AlignedContrastLoss`, for `agreement="contrast"`, trains a network from scratch.
    """

    Config = SelfPatchPairsConfig
    loss_weights: ClassVar = {"neighbours": 1.0}

    def __init__(self, config: SelfPatchPairsConfig) -> None:
        super().__init__(config)
        self.config = config
        self.loss: nn.Module = {
            "relations": AlignedRelationLoss(config),
            "kernel": PaKALoss(),
            "contrast": AlignedContrastLoss(config.student_temp),
        }[config.agreement]

    def check_grid(self, crops: str, h: int, w: int) -> None:
        """Raise ValueError if crops are a single patch, or a patch of clean ones has fewer than k neighbours."""
        super().check_grid(crops, h, w)
        if crops == "clean_crops":
            check_neighbours(h, w, self.config)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"neighbours": loss}`."""
        assert teacher.pair_tokens is not None
        patches, raw_patches = teacher.pair_tokens.patches, teacher.pair_tokens.raw_patches
        targets = mean_of_neighbours(patches, raw_patches, self.config)
        s, both, ignored = self.aligned(student, torch.cat([patches, targets], -1), views)
        t, y = both.chunk(2, -1)
        if self.config.agreement == "relations":
            return {"neighbours": self.loss(s, t, ignored, targets=y)}
        return {"neighbours": self.loss(s, y, ignored)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the log of the number of points (contrast); relations and kernels have no such value."""
        return {"neighbours": math.log(math.prod(self.size))} if self.config.agreement == "contrast" else {}
