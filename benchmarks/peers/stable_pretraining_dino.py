"""DINO by stable-pretraining: its method `DINO`, its transforms and its data module, under Lightning's trainer."""

from __future__ import annotations

from typing import Any

import lightning
import stable_pretraining as spt
from stable_pretraining.callbacks.teacher_student import TeacherStudentCallback
from stable_pretraining.data import transforms
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.peers.task import (
    CLIP,
    GLOBAL_SCALE,
    GLOBAL_SIZE,
    LEARNING_RATE,
    LOCAL_SCALE,
    LOCAL_SIZE,
    MAX_STEPS,
    NUM_LOCAL,
    StepLog,
    Task,
    read_task,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's colours."""


class DINO(spt.methods.DINO):
    """The method, which takes the views of the package's own batches."""

    def forward(self, batch: dict[str, Any], stage: str) -> dict[str, Tensor]:
        """Return the loss of a batch as `training_step` reads it."""
        crops = {name: [v["image"] for n, v in batch.items() if n.startswith(name)] for name in ("global", "local")}
        output = super().forward(global_views=crops["global"], local_views=crops["local"])
        return {"loss": output.loss, "embedding": output.embedding}


def view(size: int, scale: tuple[float, float], *, blur: float, solarize: float = 0.0) -> transforms.Compose:
    """Return the transform of one view."""
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((size, size), scale=scale),
        transforms.RandomHorizontalFlip(p=0.5),
        jitter,
        transforms.RandomGrayscale(p=0.2),
        transforms.PILGaussianBlur(sigma=(0.1, 2.0), p=blur),
        *[transforms.RandomSolarize(threshold=128, p=solarize)] * (solarize > 0),
        transforms.ToImage(mean=MEAN, std=STD),
    )


def loader(task: Task) -> DataLoader:
    """Return the loader of named views."""
    views = {
        "global_1": view(GLOBAL_SIZE, GLOBAL_SCALE, blur=1.0),
        "global_2": view(GLOBAL_SIZE, GLOBAL_SCALE, blur=0.1, solarize=0.2),
        **{f"local_{i}": view(LOCAL_SIZE, LOCAL_SCALE, blur=0.5) for i in range(NUM_LOCAL)},
    }
    dataset = spt.data.FromTorchDataset(
        ImageFolder(task.data), names=["image", "label"], transform=transforms.MultiViewTransform(views)
    )
    return DataLoader(dataset, **task.loader_options)


def train(task: Task, log: StepLog) -> None:
    """Train until the process is ended."""
    log.follow_optimizers()
    module = DINO(task.timm_model, n_prototypes=task.num_prototypes, encoder_kwargs={"dynamic_img_size": True})
    module.optim = {
        "optimizer": {"type": "AdamW", "lr": LEARNING_RATE},
        "scheduler": {"type": "ConstantLR"},
        "interval": "step",
    }
    trainer = lightning.Trainer(
        accelerator="gpu" if task.device == "cuda" else "cpu",
        devices=1,
        max_steps=MAX_STEPS,
        precision={"float32": "32-true", "bfloat16": "bf16-mixed"}[task.precision],
        callbacks=[TeacherStudentCallback()],
        gradient_clip_val=CLIP,
        default_root_dir=task.folder,
        logger=False,
        enable_checkpointing=False,
    )
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader(task)))()


def load(task: Task, log: StepLog) -> None:
    """Load batches until the process is ended."""
    batches = loader(task)
    for _ in range(MAX_STEPS):
        for _ in batches:
            log.step()


if __name__ == "__main__":
    asked = read_task()
    {"training": train, "loader": load}[asked.part](asked, StepLog(asked, "stable-pretraining", "lightning", "timm"))
