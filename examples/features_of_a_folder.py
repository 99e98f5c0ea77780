"""Features of every image of a folder: patch features [n, h, w, D] and image features [n, D]."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import selfpatch
from selfpatch.models.features import image_features, patch_features


def main(folder: str, weights: str, side: int = 224) -> dict[str, Tensor]:
    """Return the features of the images in a folder.

    Args:
        folder: folder of images.
        weights: run directory, released checkpoint, .safetensors file or timm:NAME.
        side: images are resized to side x side pixels.
    """
    encoder = selfpatch.load(weights)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    images = []
    for file in files:
        picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])  # [1, 3, side, side] uint8
    patches = torch.cat([patch_features(encoder, image).cpu() for image in images])
    return {"patches": patches, "images": image_features(encoder, images)}


if __name__ == "__main__":
    torch.save(main(sys.argv[1], sys.argv[2]), "features.pt")
