"""SelfPatch in your own training loop, around a ViT of timm and an image-level loss."""

import copy
from typing import Any

import torch
from timm.models import VisionTransformer

from selfpatch.losses import InfoNCELoss, SelfPatchLoss


def main(steps: int = 2, batch_size: int = 4) -> list[float]:
    """Train on random images and return the losses."""
    no_token: dict[str, Any] = {"class_token": False, "global_pool": "", "final_norm": False, "num_classes": 0}
    student = VisionTransformer(img_size=64, embed_dim=192, depth=4, num_heads=3, **no_token)
    teacher = copy.deepcopy(student).requires_grad_(False)
    contrast, criterion = InfoNCELoss(temp=0.2), SelfPatchLoss(dim=192, num_heads=3)
    optimizer = torch.optim.AdamW([*student.parameters(), *criterion.parameters()], lr=5e-4)
    losses = []
    for _ in range(steps):
        crops = torch.randn(2 * batch_size, 3, 64, 64)  # two crops of each image
        patches, targets = student(crops), teacher(crops)  # [2 * B, N, D]
        queries, keys = criterion.student["pool"](patches), criterion.teacher["pool"](targets)  # image tokens
        loss = contrast(queries, keys.roll(batch_size, 0))  # with the other crop of each image
        loss = loss + 0.1 * criterion(patches, targets, grid=(4, 4), teacher_temp=0.04)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(new, 1 - 0.996)
        criterion.update(momentum=0.996)
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(main())
