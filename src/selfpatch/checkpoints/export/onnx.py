"""Export as ONNX: normalised images [B, C, H, W] -> the image feature [B, D] and patch features [B, D, h, w].

The graph includes the pool of training. It takes batches of any size, and images of any size that the patch size
divides; a Swin's windows are laid out for one image size.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.export.formats import ExportSummary, native_size
from selfpatch.config.schema import Size, height_and_width
from selfpatch.models.backbones.config import SwinConfig
from selfpatch.models.debiased import Debiasing
from selfpatch.models.encoder import BranchEncoder, Features, image_token
from selfpatch.ops.debias import remove_positions

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"
USAGE = f"""session = onnxruntime.InferenceSession("{{folder}}/{FILE}")
image, patches = session.run(None, {{{{"images": images}}}})"""


def write(encoder: BranchEncoder, folder: Path, size: Size | None, *, debias: int = 0) -> ExportSummary:
    """Write the graph, whose patch features lack `debias` directions of positions.

    Raises:
        ValueError: the patch size does not divide `size`, or features do not have `debias` directions.
    """
    config, p = encoder.backbone.config, encoder.patch_size
    height, width = height_and_width(native_size(config) if size is None else size)
    encoder.backbone.check_size(height, width)
    metadata = {"mean": json.dumps(config.mean), "std": json.dumps(config.std), "patch_size": str(p)}
    free: dict[int, object] = {0: torch.export.Dim("batch")}  # dimensions of the images
    if size is not None or isinstance(config, SwinConfig):
        metadata["size"] = json.dumps(height if height == width else [height, width])
        sizes: tuple[tuple[int, int], ...] = ((height, width),)
        note = f"Images have to be of {height} x {width} pixels, in batches of any size."
    else:
        free |= {2: p * torch.export.Dim("h"), 3: p * torch.export.Dim("w")}
        sizes = ((height, width), (height + p, width + 2 * p))
        note = f"Sides of images have to be multiples of {p}."
    images, basis = torch.zeros(2, config.in_channels, height, width), None
    if debias:
        basis = patches_without_positions(encoder, debias).basis(images)
        metadata["debias"] = str(debias)
        note += f" Patch features lack {debias} directions of positions, and have length 1."
    program = torch.onnx.export(
        _Graph(encoder, basis).eval(),
        (images,),
        input_names=["images"],
        output_names=["image", "patches"],
        dynamic_shapes={"images": free},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(folder / FILE)
    return ExportSummary(USAGE, sizes, (note,))


def patches_without_positions(encoder: BranchEncoder, debias: int) -> Debiasing:
    """Return the function of patch features [B, D, h, w] that a debiased graph computes."""
    backbone = encoder.backbone
    return Debiasing(lambda images: backbone(images).patches.movedim(-1, 1), debias, encoder.mean, encoder.std)


class _Graph(nn.Module):
    """The encoder as one pass for both features, without a branch on the size of images."""

    basis: Tensor | None

    def __init__(self, encoder: BranchEncoder, basis: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.backbone, self.pool = encoder.backbone, encoder.pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        patches = tokens.patches if self.basis is None else remove_positions(tokens.patches, self.basis)
        return image_token(tokens, self.pool), patches.movedim(-1, 1)


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    image, patches = session.run(None, {"images": images.numpy()})
    return Features(torch.from_numpy(image), torch.from_numpy(patches))
