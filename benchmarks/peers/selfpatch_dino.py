"""DINO by selfpatch: the whole `selfpatch pretrain`."""

from __future__ import annotations

import torch

from benchmarks.peers.task import CLIP, GLOBAL_SCALE, LEARNING_RATE, LOCAL_SCALE, MAX_STEPS, StepLog, Task, read_task
from selfpatch.api.pretrain import pretrain
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.training import factory


def config_of(task: Task) -> RunConfig:
    """Return the settings of a run; nothing is evaluated after the start."""
    return (
        load_recipe("dino-vits16")
        .for_model(task.model)
        .override(
            {
                "data": task.data,
                "out": f"{task.folder}/run",
                "batch_size": task.batch_size,
                "epochs": MAX_STEPS,
                "precision": {"float32": "fp32", "bfloat16": "bf16"}[task.precision],
                "device": task.device,
                "backbone": {"drop_path": 0.0},
                "dino": {"num_prototypes": task.num_prototypes},
                "crops": {"global_scale": GLOBAL_SCALE, "local_scale": LOCAL_SCALE},
                "optimizer": {"base_lr": LEARNING_RATE * 256 / task.batch_size, "clip": CLIP},
                "loader": {"workers": task.workers},
                "watch": {"evaluate_every": 0.0, "knn_images": 0, "picture_images": 0},
            }
        )
    )


def train(task: Task, log: StepLog) -> None:
    """Train until the process is ended."""
    log.follow_optimizers()
    pretrain(config_of(task))


def load(task: Task, log: StepLog) -> None:
    """Load batches until the process is ended."""
    config = config_of(task)
    device = torch.device(task.device)
    student_teacher = factory.make_student_teacher(config)[0]
    loader = factory.make_loader(config, student_teacher, factory.open_training_data(config), device)
    for _ in loader.steps(0, MAX_STEPS):
        log.step()


if __name__ == "__main__":
    asked = read_task()
    {"training": train, "loader": load}[asked.part](asked, StepLog(asked, "timm"))
