"""Benchmark of DINO by lightly against selfpatch at the same sizes: the step, and the ten views of a photograph.

    pip install lightly
    python -m benchmarks.peers [--data PHOTOS] [--model vit_small] [--batch-size 4] [--seconds 20]

Both steps train a timm ViT with a head of 65,536 prototypes on 2 + 8 crops with AdamW, clipping and an EMA teacher.
Lightly's step is put together as in its example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
import tyro
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from torch import Tensor, nn

from benchmarks.config import BenchConfig
from benchmarks.loader import NUM_IMAGES, views_of_files
from benchmarks.report import Report, describe_machine
from benchmarks.step import StepBench
from benchmarks.timing import Case, Timing, time_case
from selfpatch.config.recipes import load_recipe
from selfpatch.config.sections import CropConfig
from selfpatch.core.console import console
from selfpatch.core.distributed import start
from selfpatch.core.machine import emulates
from selfpatch.data.augment.backends import BACKENDS, choose_backend
from selfpatch.data.augment.multicrop import dino_views
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.index import ImageIndex


class LightlyStep:
    """Training step of lightly's DINO."""

    def __init__(self, model: str, batch_size: int, device: torch.device, autocast: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self._autocast, self._device = autocast, device
        self._student, self._teacher = (_lightly_network(model).to(device) for _ in range(2))
        self._teacher.load_state_dict(self._student.state_dict())
        deactivate_requires_grad(self._teacher)
        self._loss = DINOLoss().to(device)
        self._optimizer = torch.optim.AdamW(self._student.parameters(), lr=1e-4)
        self._views = [torch.randn(batch_size, 3, side, side, device=device) for side in [224] * 2 + [96] * 8]

    def __call__(self) -> None:
        """Take one step."""
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            with torch.no_grad():
                targets: list[Tensor] = [self._teacher(view) for view in self._views[:2]]
            loss = self._loss(targets, [self._student(view) for view in self._views], epoch=0)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._student.parameters(), 3.0)
        self._optimizer.step()
        update_momentum(self._student, self._teacher, m=0.996)


def _lightly_network(model: str) -> nn.Sequential:
    backbone = timm.create_model(f"{model}_patch16_224", num_classes=0, dynamic_img_size=True)
    return nn.Sequential(backbone, DINOProjectionHead(backbone.num_features))


def step_cases(model: str, batch_size: int, device: torch.device) -> Iterator[Case]:
    """Yield the case of a step in float32 and in bfloat16."""
    config = load_recipe("dino-vits16").for_model(model).override({"batch_size": batch_size})
    ours = StepBench(config, device)
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        if dtype is not None and emulates(dtype, device):
            continue
        variants: dict[str, Callable[[], object]] = {
            f"lightly {name}": LightlyStep(model, batch_size, device, dtype),
            f"selfpatch {name}": partial(ours.step, f"fast {name}"),
        }
        yield Case(f"step of DINO, {model}, 2 x 224 + 8 x 96 pixels, batch {batch_size}, {name}", variants, batch_size)


def loader_case(data: str | None) -> Case:
    """Return the case from files to views on one core: lightly's are normalised floats, selfpatch's 8-bit."""
    index = ImageIndex.open(sample_photographs() / "training" if data is None else Path(data))
    paths = [index.path(i) for i in range(min(NUM_IMAGES, len(index)))]
    transform = DINOTransform(n_local_views=8)
    backend = BACKENDS[choose_backend("auto", device_type="cpu", channels=3)]

    def lightly() -> None:
        for path in paths:
            transform(read_image(path))

    ours = partial(views_of_files, paths, dino_views(CropConfig()), backend)
    return Case("ten views of a photograph, one core", {"lightly": lightly, "selfpatch": ours}, len(paths))


def main() -> None:
    """Run the comparison with the options of the command line."""
    config = tyro.cli(BenchConfig, default=BenchConfig(seconds=20.0), description=__doc__)
    device = start(config.device)
    console.print(describe_machine(device))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timings: list[Timing] = [time_case(loader_case(config.data), seconds=config.seconds)]
    torch.set_num_threads(threads)
    cases = [case for model in config.model for case in step_cases(model, config.batch_size, device)]
    timings += [time_case(case, seconds=config.seconds) for case in cases]
    report = Report(timings, {}, describe_machine(device))
    console.print(*report.tables())
    if config.out is not None:
        report.save(Path(config.out))


if __name__ == "__main__":
    main()
