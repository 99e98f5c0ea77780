"""An ONNX graph: normalised images [B, C, H, W] -> the image feature [B, D] and patch features [B, D, h, w].

The pool of training is in it. Any batch goes in, and images of any size that the patch divides; a Swin's windows are
laid out for one size.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.export.formats import Features, Written, stored_size
from selfpatch.models.backbones.config import AnyBackboneConfig, SwinConfig
from selfpatch.models.encoder import BranchEncoder, image_token

FILE = "model.onnx"
USAGE = f"""session = onnxruntime.InferenceSession("{{folder}}/{FILE}")
image, patches = session.run(None, {{{{"images": images}}}})"""


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> Written:
    """Raises ValueError where the patch does not divide `size`."""
    shape = encoder.backbone.config
    fixed = size is not None or isinstance(shape, SwinConfig)
    side = stored_size(shape) if size is None else size
    encoder.backbone.check_size(side, side)
    example = torch.zeros(2, shape.in_channels, side, side)
    program = torch.onnx.export(
        Graph(encoder).eval(),
        (example,),
        input_names=["images"],
        output_names=["image", "patches"],
        dynamic_shapes={"images": dynamic_dimensions(shape, fixed=fixed)},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(_metadata(shape, side if fixed else None))
    program.save(folder / FILE)
    if fixed:
        return Written(
            USAGE, ((side, side),), (f"Images have to be of {side} x {side} pixels, in batches of any size.",)
        )
    p = shape.patch_size
    other = (side + p, side + 2 * p)
    return Written(USAGE, ((side, side), other), (f"Sides of images have to be multiples of {p}.",))


def dynamic_dimensions(shape: AnyBackboneConfig, *, fixed: bool) -> dict[int, object]:
    """Which dimensions of the images are free."""
    free: dict[int, object] = {0: torch.export.Dim("batch")}
    if not fixed:
        free |= {2: shape.patch_size * torch.export.Dim("h"), 3: shape.patch_size * torch.export.Dim("w")}
    return free


def _metadata(shape: AnyBackboneConfig, side: int | None) -> dict[str, str]:
    size = {} if side is None else {"size": str(side)}
    return {"mean": json.dumps(shape.mean), "std": json.dumps(shape.std), "patch_size": str(shape.patch_size)} | size


class Graph(nn.Module):
    """What becomes of the encoder: one pass for both features, without a branch on the size of images."""

    def __init__(self, encoder: BranchEncoder) -> None:
        super().__init__()
        self.backbone, self.pool = encoder.backbone, encoder.pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        return image_token(tokens, self.pool), tokens.patches.movedim(-1, 1)


def read_features(folder: Path, images: Tensor) -> Features:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    image, patches = session.run(None, {"images": images.numpy()})
    return Features(torch.from_numpy(image), torch.from_numpy(patches))
