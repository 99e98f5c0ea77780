"""Replay of DAVIS from JPEG frames to written masks, through the evaluation's own code and a released checkpoint.

The frames are not part of the bundle: they are those of the DAVIS tree in the folder that `SELFPATCH_DATA` names, or in
a folder `data` next to one that holds the bundle.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.video_segmentation import propagation
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.parity.check import TIGHT, Check, compare, compare_exactly

WITHOUT_FINAL_NORM = "alinlab/SelfPatch"
"""Repository whose script takes the patches of the last block; DINO's are after the final norm."""


def replay_davis_frames(bundle: Path) -> Iterator[Check]:
    """Replay one sequence: input and features of the first propagated frame, soft labels, and every written mask."""
    expected = json.loads((bundle / "expected.json").read_text())
    checkpoint, architecture = str(bundle / "checkpoint.pth"), expected["architecture"]
    load = LoadConfig(side=architecture["checkpoint_key"], num_heads=architecture["num_heads"])
    encoder, _ = load_encoder(checkpoint, load, normed_patches=expected["repository"] != WITHOUT_FINAL_NORM)
    with tempfile.TemporaryDirectory() as folder:
        tree, output = Path(folder) / "DAVIS", Path(folder) / "output"
        _link_frames(_data_of(bundle), tree, expected["sequence"], expected["frames"])
        recorder, soft_labels, context_labels = _Recorder(encoder), [], []
        propagate = propagation.propagate_labels

        def recorded(query: Tensor, features: Any, labels: Any, **settings: Any) -> Tensor:
            soft_labels.append(propagate(query, features, labels, **settings))
            context_labels.append(labels[0])
            return soft_labels[-1]

        with patch.object(propagation, "propagate_labels", recorded):
            config = DAVISConfig(sequences=(expected["sequence"],), **_arguments(expected["arguments"]))
            result = evaluate(recorder, tree, config, Output(output))
        masks = [output / "results" / expected["sequence"] / f"{name}.png" for name in expected["frames"]]
        yield from _first_frame(expected["first_propagated_frame"], recorder)
        yield from _soft_labels(expected, load_file(bundle / "tensors.safetensors"), soft_labels, context_labels[0])
        yield from _masks(expected, [bundle / "masks" / path.name for path in masks], masks)
    scored = expected["jaccard_against_ground_truth"][1:-1]  # the first and the last frame are not scored
    yield Check("J", abs(result.metrics["J-Mean"] - float(np.mean(scored))), 1e-6)


def _arguments(released: dict[str, Any]) -> dict[str, Any]:
    return {
        "resolution": released["scale_size"],
        "radius": released["size_mask_neighborhood"],
        "topk": released["topk"],
        "context_frames": released["n_last_frames"],
    }


def _data_of(bundle: Path) -> Path:
    if "SELFPATCH_DATA" in os.environ:
        return Path(os.environ["SELFPATCH_DATA"])
    found = (folder / "data" for folder in bundle.absolute().parents if (folder / "data" / "davis").is_dir())
    return next(found, Path("data"))


def _link_frames(data: Path, tree: Path, sequence: str, frames: list[str]) -> None:
    """Make a DAVIS tree of the given frames alone.

    Raises:
        ValueError: the frames are missing.
    """
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tree / folder / "480p" / sequence).mkdir(parents=True)
        for name in frames:
            part = Path(folder) / "480p" / sequence / f"{name}.{suffix}"
            if not (frame := (data / "davis" / part).absolute()).is_file():
                raise ValueError(f"no frame {frame}; set SELFPATCH_DATA to the folder that holds davis/")
            (tree / part).symlink_to(frame)


class _Recorder:
    """An encoder that keeps the inputs and features of all frames."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.inputs, self.features = encoder, [], []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def patches(self, images: Tensor) -> Tensor:
        self.inputs.append(images[0])
        self.features.append(self.encoder.patches(images)[0])
        return self.features[-1][None]

    def image(self, images: Tensor) -> Tensor:
        return self.encoder.image(images)


def _first_frame(expected: dict[str, Any], recorder: _Recorder) -> Iterator[Check]:
    """Compare the first propagated frame: pixels, network input and unnormalised features."""
    pixels, features = recorder.inputs[1], recorder.features[1].movedim(0, -1)  # [3, H, W] and [h, w, D]
    yield compare_exactly("size of the input", torch.tensor(pixels.shape), torch.tensor(expected["input_shape"]))
    for name, got in (("mean", pixels.double().mean((1, 2))), ("std", pixels.double().std((1, 2)))):
        yield compare(f"input {name}", got, torch.tensor(expected[f"channel_{name}"]).double(), TIGHT)
    rows, columns, *values = zip(*expected["input_at_row_column"], strict=True)
    yield compare("input pixels", pixels[:, rows, columns], torch.tensor(values), TIGHT)
    yield compare_exactly("grid", torch.tensor(features.shape[:2]), torch.tensor(expected["grid"]))
    yield compare("norms of features", features.double().norm(dim=-1).sum(), expected["feature_norms_sum"], TIGHT)
    for at in expected["features_at_row_column"]:
        row, column = at["row"], at["column"]
        yield compare(f"features at {row}, {column}", features[row, column], torch.tensor(at["feature"]), TIGHT)


def _soft_labels(
    expected: dict[str, Any], tensors: dict[str, Tensor], soft_labels: list[Tensor], first_mask: Tensor
) -> Iterator[Check]:
    yield compare_exactly("first mask on the grid", first_mask, tensors["first_mask_on_grid"])
    recorded = tensors["soft_labels_of_first_propagated_frame"]
    yield compare("soft labels of the first propagated frame", soft_labels[0], recorded, TIGHT)
    for name, soft, sums in zip(expected["frames"][1:], soft_labels, expected["soft_labels"], strict=True):
        for power, part in ((1, "sum_of_each_channel"), (2, "sum_of_squares_of_each_channel")):
            got = soft.double().pow(power).sum((1, 2))
            yield compare(f"soft labels of {name}, {part}", got, torch.tensor(sums[part]).double(), TIGHT)


def _masks(expected: dict[str, Any], recorded: list[Path], written: list[Path]) -> Iterator[Check]:
    for name, theirs, ours, count in zip(
        expected["frames"], recorded, written, expected["mask_pixels_of_object"], strict=True
    ):
        with Image.open(theirs) as a, Image.open(ours) as b:
            got, wanted = (torch.from_numpy(np.array(image)) for image in (b, a))
            yield compare_exactly(f"mask of {name}", got, wanted)
            same = a.getpalette()[: 3 * 2] == b.getpalette()[: 3 * 2]  # background and the object
            yield Check(f"palette of {name}", float(not same), 0)
        yield Check(f"pixels of the object in {name}", abs(int((got == 1).sum()) - count), 0)
