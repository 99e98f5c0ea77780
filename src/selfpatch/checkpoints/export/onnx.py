"""Export as ONNX: normalised images [B, C, H, W] -> the image feature [B, D] and patch features [B, D, h, w].

The graph includes the pool of training. It takes batches of any size, and images of any size that the patch size
divides; a Swin's windows are laid out for one image size.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.export.formats import ExportSummary, Features, native_size
from selfpatch.models.backbones.config import AnyBackboneConfig, SwinConfig
from selfpatch.models.encoder import BranchEncoder, image_token

FILE = "model.onnx"
USAGE = f"""session = onnxruntime.InferenceSession("{{folder}}/{FILE}")
image, patches = session.run(None, {{{{"images": images}}}})"""


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> ExportSummary:
    """Write the graph.

    Raises:
        ValueError: the patch size does not divide `size`.
    """
    config = encoder.backbone.config
    fixed = size is not None or isinstance(config, SwinConfig)
    side = native_size(config) if size is None else size
    encoder.backbone.check_size(side, side)
    example = torch.zeros(2, config.in_channels, side, side)
    program = torch.onnx.export(
        _Graph(encoder).eval(),
        (example,),
        input_names=["images"],
        output_names=["image", "patches"],
        dynamic_shapes={"images": _dynamic_dimensions(config, fixed=fixed)},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(_metadata(config, side if fixed else None))
    program.save(folder / FILE)
    if fixed:
        return ExportSummary(
            USAGE, ((side, side),), (f"Images have to be of {side} x {side} pixels, in batches of any size.",)
        )
    p = config.patch_size
    other = (side + p, side + 2 * p)
    return ExportSummary(USAGE, ((side, side), other), (f"Sides of images have to be multiples of {p}.",))


def _dynamic_dimensions(config: AnyBackboneConfig, *, fixed: bool) -> dict[int, object]:
    """Return the dimensions of the images that are free."""
    free: dict[int, object] = {0: torch.export.Dim("batch")}
    if not fixed:
        free |= {2: config.patch_size * torch.export.Dim("h"), 3: config.patch_size * torch.export.Dim("w")}
    return free


def _metadata(config: AnyBackboneConfig, side: int | None) -> dict[str, str]:
    size = {} if side is None else {"size": str(side)}
    return {"mean": json.dumps(config.mean), "std": json.dumps(config.std), "patch_size": str(config.patch_size)} | size


class _Graph(nn.Module):
    """The encoder as one pass for both features, without a branch on the size of images."""

    def __init__(self, encoder: BranchEncoder) -> None:
        super().__init__()
        self.backbone, self.pool = encoder.backbone, encoder.pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        return image_token(tokens, self.pool), tokens.patches.movedim(-1, 1)


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    image, patches = session.run(None, {"images": images.numpy()})
    return Features(torch.from_numpy(image), torch.from_numpy(patches))
