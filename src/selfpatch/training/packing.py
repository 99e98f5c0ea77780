"""Choice whether crops of all sizes pass the backbones at once (`models.backbones.packing`)."""

import torch

from selfpatch.config.sections import Packing
from selfpatch.models.backbones.base import Backbone
from selfpatch.training.student_teacher import StudentTeacher


def check_packing(packing: Packing, backbone: Backbone, model: str) -> None:
    """Raise ValueError if crops are to be packed for a backbone that cannot."""
    if packing == "always" and not backbone.packable:
        raise ValueError(
            f"packing is 'always', but {model} cannot encode crops of several sizes at once; leave it out, or use one "
            "of the ViTs vit_tiny, vit_small, vit_base, vit_large, vit_huge and vit_giant"
        )


def pack_crops(
    student_teacher: StudentTeacher, packing: Packing, device: torch.device, autocast: torch.dtype | None
) -> None:
    """Let student and teacher encode crops of all sizes at once or in separate passes, in place.

    Args:
        student_teacher: the network.
        packing: the setting of the run. `auto` packs where it was measured to be faster than separate passes: in 16
            bits on a CPU (docs/performance.md).
        device: device that trains.
        autocast: type of the products of the forward pass; if None, float32.
    """
    backbone = student_teacher.student.backbone
    faster = device.type == "cpu" and autocast is not None
    packed = packing == "always" or (packing == "auto" and backbone.packable and faster)
    for branch in (student_teacher.student, student_teacher.teacher):
        branch.packed = packed
