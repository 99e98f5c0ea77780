"""Features of every image of a folder: patch features [n, h, w, D] and image features [n, D]."""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import selfpatch


@torch.no_grad()
def main(folder: str, weights: str, side: int = 224) -> dict[str, Tensor]:
    """Return the features of the images in a folder.

    Args:
        folder: folder of images.
        weights: run directory, released checkpoint, .safetensors file or timm:NAME.
        side: images are resized to side x side pixels.
    """
    encoder = selfpatch.load(weights)
    features = []
    for file in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"}):
        images = encoder.transform(Image.open(file), size=(side, side))  # [1, 3, side, side]
        features.append(encoder(images.to(encoder.device)))
    cls, patches = (torch.cat(parts).cpu() for parts in zip(*features, strict=True))
    return {"patches": patches.movedim(1, -1), "images": cls}


if __name__ == "__main__":
    torch.save(main(sys.argv[1], sys.argv[2]), "features.pt")
