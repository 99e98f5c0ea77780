"""SERE in your own training loop, around a ViT of timm; add your image-level loss."""

import copy
from typing import Any

import torch
from timm.models import VisionTransformer

from selfpatch.losses import SERELoss


def main(steps: int = 2, batch_size: int = 4) -> list[float]:
    """Train on random crops and return the losses."""
    no_token: dict[str, Any] = {"class_token": False, "global_pool": "", "final_norm": False, "num_classes": 0}
    student = VisionTransformer(img_size=64, embed_dim=192, depth=4, num_heads=3, **no_token)
    teacher = copy.deepcopy(student).requires_grad_(False)
    criterion = SERELoss(dim=192, num_heads=3)
    optimizer = torch.optim.AdamW([*student.parameters(), *criterion.parameters()], lr=5e-4)
    losses = []
    for _ in range(steps):
        crops = torch.randn(2 * batch_size, 3, 64, 64)  # all first crops, then all second ones
        corner, flipped = torch.randint(0, 50, (2, batch_size, 2)), torch.randint(0, 2, (2, batch_size, 1))
        boxes = torch.cat([corner, torch.full_like(corner, 100), flipped], -1).float()  # left, top, width, height, flip
        tokens = [side(crops).unflatten(1, (4, 4)).unflatten(0, (2, batch_size)) for side in (student, teacher)]
        relations = criterion(*tokens, boxes)
        loss = 0.2 * relations["spatial"] + 0.5 * relations["channel"]
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
