"""DINO by lightly, put together as in its example: one forward pass for each crop."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers.task import CLIP, GLOBAL_SCALE, LEARNING_RATE, LOCAL_SCALE, NUM_LOCAL, StepLog, Task, read_task


def batches(task: Task) -> Iterator[list[Tensor]]:
    """Yield batches of normalised views for ever."""
    transform = DINOTransform(global_crop_scale=GLOBAL_SCALE, local_crop_scale=LOCAL_SCALE, n_local_views=NUM_LOCAL)
    loader = DataLoader(LightlyDataset(task.data, transform=transform), **task.loader_options)
    while True:
        for views, _, _ in loader:
            yield views


def network(task: Task) -> nn.Sequential:
    """Return backbone and head."""
    backbone = timm.create_model(task.timm_model, num_classes=0, dynamic_img_size=True)
    return nn.Sequential(backbone, DINOProjectionHead(backbone.num_features, output_dim=task.num_prototypes))


def train(task: Task, log: StepLog) -> None:
    """Train until the process is ended."""
    log.follow_optimizers()
    student, teacher = (network(task).to(task.device) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=task.num_prototypes).to(task.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    for crops in batches(task):
        views = [crop.to(task.device, non_blocking=True) for crop in crops]
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bfloat16"):
            with torch.no_grad():
                targets: list[Tensor] = [teacher(view) for view in views[:2]]
            loss = criterion(targets, [student(view) for view in views], epoch=0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        update_momentum(student, teacher, m=0.996)


def load(task: Task, log: StepLog) -> None:
    """Load batches until the process is ended."""
    for _ in batches(task):
        log.step()


if __name__ == "__main__":
    asked = read_task()
    {"training": train, "loader": load}[asked.part](asked, StepLog(asked, "lightly", "timm"))
