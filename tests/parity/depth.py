"""Replay of depth: metrics, bins and losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.evaluation.depth.head import bins_to_depth
from selfpatch.evaluation.depth.metrics import depth_metrics, eigen_mask, fit_scale_and_shift, mean_metrics
from selfpatch.losses.depth import SigLoss, gradient_log_loss, sig_loss
from tests.parity.check import ENTRIES, TIGHT, Check, compare, compare_exactly


def replay_depth_metrics(bundle: Path) -> Iterator[Check]:
    """Compare the metrics of each image and their means on both masks, alignment, and depths of bins."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    maps = list(zip(t["prediction"][:, 0], t["depth"][:, 0], strict=True))
    height, width = t["depth"].shape[-2:]
    limits = expected["min_depth"], expected["max_depth"]
    eigen = eigen_mask(height, width)
    for name, mask in (("NYU_EIGEN", eigen), ("FULL", torch.ones_like(eigen))):
        found = [depth_metrics(*pair, mask, limits=limits) or {} for pair in maps]
        means = mean_metrics(found)
        for metric, wanted in expected[f"{name}.mean"].items():
            yield compare(
                f"{name}: {metric}", [one[metric] for one in found], [e[metric] for e in expected[name]], TIGHT
            )
            yield compare(f"{name}: mean {metric}", means[metric], wanted, TIGHT)
    for i, (prediction, depth) in enumerate(maps):
        valid = eigen & (depth > limits[0]) & (depth < limits[1])
        fitted = fit_scale_and_shift(prediction[valid], depth[valid])
        yield compare(f"scale and shift {i}", fitted, expected["least_squares_scale_shift"][i], ENTRIES)
        aligned = depth_metrics(prediction, depth, eigen, limits=limits, align=True) or {}
        for metric, wanted in expected["NYU_EIGEN.after_least_squares"][i].items():
            yield compare(f"aligned {i}: {metric}", aligned[metric], wanted, TIGHT)
    yield compare("bins", bins_to_depth(t["bins.logits"], limits), t["bins.linear"], TIGHT)


def replay_depth_losses(bundle: Path) -> Iterator[Check]:
    """Compare each loss, and its gradient with respect to the prediction."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    depth, valid = t["depth"], t["valid"].bool()
    yield compare_exactly("valid", (depth > 0) & (depth <= expected["max_depth"]), valid)

    def one_map(prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
        return gradient_log_loss(prediction[0, 0], depth[0, 0], valid[0, 0])

    def axes_as_released(prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
        return gradient_log_loss(*(x.permute(2, 3, 0, 1) for x in (prediction, depth, valid)))

    losses: dict[str, Callable[..., Tensor]] = {
        "dinov3.sig": SigLoss(warmup=0),
        "dinov3.sig_warmup": SigLoss(),
        "dinov3.gradient_log": gradient_log_loss,
        "dinov2.sig": SigLoss(warmup=0),
        "dinov2.sig_warmup": SigLoss(),
        "dinov2.gradient_on_one_map": one_map,
        "dinov2.gradient_on_batch_as_released": axes_as_released,
        "probe3d.sig": partial(sig_loss, unbiased=False),
        "probe3d.gradient_log": gradient_log_loss,
    }
    for name, loss in losses.items():
        prediction = t["prediction"].clone().requires_grad_()
        value = loss(prediction, depth, valid)
        yield compare(name, value, expected[name], TIGHT)
        if f"{name}.grad" in t:
            yield compare(f"{name}: gradient", torch.autograd.grad(value, prediction)[0], t[f"{name}.grad"], ENTRIES)
