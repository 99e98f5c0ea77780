"""An ONNX graph: normalised images [B, C, H, W] -> the image feature [B, D] and patch features [B, D, h, w].

The pool of training is in it. Any batch goes in, and images of any size that the patch divides; a Swin's windows are
laid out for one size.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.exports.written import Features, Written, stored_size
from selfpatch.nn.backbones import AnyShape, SwinShape
from selfpatch.nn.backbones.vit import ViT
from selfpatch.nn.branch import BranchEncoder, image_token

FILE = "model.onnx"
USAGE = f"""session = onnxruntime.InferenceSession("{{folder}}/{FILE}")
image, patches = session.run(None, {{{{"images": images}}}})"""


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> Written:
    """Raises ValueError where the patch does not divide `size`."""
    shape = encoder.backbone.shape
    fixed = size is not None or isinstance(shape, SwinShape)
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


def dynamic_dimensions(shape: AnyShape, *, fixed: bool) -> dict[int, object]:
    """Which dimensions of the images are free."""
    free: dict[int, object] = {0: torch.export.Dim("batch")}
    if not fixed:
        free |= {2: shape.patch_size * torch.export.Dim("h"), 3: shape.patch_size * torch.export.Dim("w")}
    return free


def _metadata(shape: AnyShape, side: int | None) -> dict[str, str]:
    size = {} if side is None else {"size": str(side)}
    return {"mean": json.dumps(shape.mean), "std": json.dumps(shape.std), "patch_size": str(shape.patch_size)} | size


class Graph(nn.Module):
    """What becomes of the encoder: one pass for both features, without a branch on the size of images."""

    def __init__(self, encoder: BranchEncoder) -> None:
        super().__init__()
        self.backbone, self.pool = encoder.backbone, encoder.pool
        if isinstance(self.backbone, ViT):
            positions = partial(add_positions, self.backbone)
            self.backbone.trunk._pos_embed = positions  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        return image_token(tokens, self.pool), tokens.patches.movedim(-1, 1)


def add_positions(backbone: ViT, embedded: Tensor) -> Tensor:
    """`backbone.trunk._pos_embed` with the same operations for any size: interpolation is two matrix products, with the
    identity at the stored grid. Embedded patches [B, h, w, D] -> tokens [B, prefix + h * w, D]."""
    B, h, w, D = embedded.shape
    trunk, shape = backbone.trunk, backbone.shape
    released = shape.timm_model is None and shape.position_embedding == "released"
    assert trunk.pos_embed is not None
    own = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    prefix, grid = trunk.pos_embed[:, :own], trunk.pos_embed[0, own:]
    G = shape.grid
    rows, columns = released_weights(h, w, G) if released else (size_weights(h, G), size_weights(w, G))
    positions = torch.einsum("ig,jk,gkd->ijd", rows, columns, grid.view(G, G, D)).flatten(0, 1)
    x = embedded.flatten(1, 2) + positions
    tokens: list[Tensor] = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    if tokens:
        first = torch.cat(tokens, dim=1)
        x = torch.cat([(first + prefix if own else first).expand(B, -1, -1), x], dim=1)
    return trunk.pos_drop(x)


def released_weights(h: int, w: int, G: int) -> tuple[Tensor, Tensor]:
    """What each of h rows and w columns takes of G stored ones, [h, G] and [w, G]: torch's bicubic interpolation by the
    scale factors (h + 0.1) / G and (w + 0.1) / G; the identity where both are G."""
    sides = [torch.ones(side).sum() for side in (h, w)]  # as tensors, so that the graph can compare them
    stored = (sides[0] == G) & (sides[1] == G)

    def weights(count: int, side: Tensor) -> Tensor:
        scale = torch.where(stored, torch.ones(()), G / (side + 0.1))
        centres = (torch.arange(count) + 0.5) * scale - 0.5
        distance = (centres[:, None] - torch.arange(-2, G + 2)).abs()  # two more on each side repeat the border
        taps = _cubic(distance, -0.75)
        before, after = taps[:, :2].sum(1, keepdim=True), taps[:, -2:].sum(1, keepdim=True)
        inner = taps[:, 2:-2]
        return inner + F.pad(before, (0, G - 1)) + F.pad(after, (G - 1, 0))

    return weights(h, sides[0]), weights(w, sides[1])


def size_weights(count: int, G: int) -> Tensor:
    """[count, G]: torch's bicubic interpolation to a size with antialias, as timm interpolates positions."""
    scale = G / torch.ones(count).sum()
    centres = (torch.arange(count) + 0.5) * scale
    taps = _cubic((centres[:, None] - torch.arange(G) - 0.5).abs() / scale.clamp(min=1), -0.5)
    return taps / taps.sum(1, keepdim=True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel of a distance >= 0, in samples."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros(())))


def read_features(folder: Path, images: Tensor) -> Features:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    image, patches = session.run(None, {"images": images.numpy()})
    return Features(torch.from_numpy(image), torch.from_numpy(patches))
