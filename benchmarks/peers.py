"""DINO by lightly against ours at the same sizes: the step, and the ten views of a photograph.

    pip install lightly
    python benchmarks/peers.py [--data PHOTOS] [--model vit_small] [--batch-size 4] [--seconds 20]

Both steps train a timm ViT with a head of 65,536 prototypes on 2 + 8 crops with AdamW, clipping and a moving teacher.
Lightly's is put together as its example does it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from rich.console import Console
from torch import Tensor, nn

from benchmarks.report import Report, machine_facts
from benchmarks.step import StepBench
from benchmarks.timing import Case, time_case
from selfpatch.config.recipes import load_recipe
from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.backends import BACKENDS, choose_backend
from selfpatch.data.augment.multicrop import dino_views, draw_view, generator
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.index import ImageIndex

IMAGES = 16


class LightlyStep:
    """A step of lightly's DINO."""

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
    config = load_recipe("dino-vits16").for_model(model).override({"batch_size": batch_size})
    ours = StepBench(config, device)
    for dtype in (None, torch.bfloat16):
        name = "float32" if dtype is None else "bfloat16"
        calls: dict[str, Callable[[], object]] = {
            f"lightly {name}": LightlyStep(model, batch_size, device, dtype),
            f"selfpatch {name}": lambda name=name: ours.step(f"fast {name}"),
        }
        yield Case(f"step of DINO, {model}, 2 x 224 + 8 x 96 pixels, batch {batch_size}, {name}", calls, batch_size)


def loader_case(data: Path | None) -> Case:
    """From files to views on one core; lightly's are normalised floats, ours 8-bit, to be normalised on a device."""
    index = ImageIndex.open(sample_photographs() / "training" if data is None else data)
    paths = [index.path(place) for place in range(min(IMAGES, len(index)))]
    transform, recipes = DINOTransform(n_local_views=8), dino_views(CropConfig())
    read, render = BACKENDS[choose_backend("auto", device_type="cpu", channels=3)]
    assert render is not None

    def theirs() -> None:
        for path in paths:
            transform(read_image(path))

    def ours() -> None:
        for number, path in enumerate(paths):
            image = read(path, 3)
            for view, recipe in enumerate(recipes):
                render(image, recipe.size, draw_view(recipe, image.size, generator(0, 0, number, view)))

    return Case("ten views of a photograph, one core", {"lightly": theirs, "selfpatch": ours}, len(paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; none: the built-in samples")
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long each case is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    console, device = Console(), torch.device(options.device)
    console.print(machine_facts(device))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timings = [time_case(loader_case(options.data), seconds=options.seconds)]
    torch.set_num_threads(threads)
    timings += [
        time_case(case, seconds=options.seconds) for case in step_cases(options.model, options.batch_size, device)
    ]
    for table in Report(timings, {}, {}).tables():
        console.print(table)


if __name__ == "__main__":
    main()
