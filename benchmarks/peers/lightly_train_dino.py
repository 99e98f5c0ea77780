"""DINO by lightly-train: its command `pretrain`."""

from __future__ import annotations

import lightly_train

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


def train(task: Task, log: StepLog) -> None:
    """Train until the process is ended."""
    log.follow_optimizers()
    areas = {
        name: {"min_scale": low, "max_scale": high}
        for name, (low, high) in {"global": GLOBAL_SCALE, "local": LOCAL_SCALE}.items()
    }
    lightly_train.pretrain(
        out=f"{task.folder}/run",
        data=task.data,
        model=f"timm/{task.timm_model}",
        method="dino",
        method_args={"output_dim": task.num_prototypes},
        epochs=MAX_STEPS,
        batch_size=task.batch_size,
        num_workers=task.workers,
        devices=1,
        accelerator="gpu" if task.device == "cuda" else "cpu",
        precision={"float32": "32-true", "bfloat16": "bf16-mixed"}[task.precision],
        optim="adamw",
        optim_args={"lr": LEARNING_RATE},
        transform_args={
            "image_size": (GLOBAL_SIZE, GLOBAL_SIZE),
            "random_resize": areas["global"],
            "local_view": {
                "num_views": NUM_LOCAL,
                "view_size": (LOCAL_SIZE, LOCAL_SIZE),
                "random_resize": areas["local"],
            },
        },
        trainer_args={"gradient_clip_val": CLIP},
    )


if __name__ == "__main__":
    asked = read_task()
    train(asked, StepLog(asked, "lightly-train", "pytorch-lightning", "timm"))
