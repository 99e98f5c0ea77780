"""DAVIS as small data sets of `segment` and `discover`: every video is a class, and its masks are the objects."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FRAMES = {"train": slice(0, None, 20), "val": slice(10, 11)}  # of each video


def main(davis: str, out: str) -> None:
    """Write OUT/{classes.txt,images,labels} for `segment`, and boxes in OUT/images/annotations for `discover`."""
    masks, photos = (Path(davis, kind, "480p") for kind in ("Annotations", "JPEGImages"))
    images, labels, tables = (Path(out, name) for name in ("images", "labels", "images/annotations"))
    videos = dict(enumerate(sorted(path.name for path in masks.iterdir()), start=1))
    for folder in (*(kind / split for kind in (images, labels) for split in FRAMES), tables):
        folder.mkdir(parents=True)
    Path(out, "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in ({0: "background"} | videos).items()))
    for split, frames in FRAMES.items():
        listed: list[dict[str, object]] = []
        boxes: list[dict[str, object]] = []
        for number, video in videos.items():
            for file in sorted((masks / video).glob("*.png"))[frames]:
                name, inside = f"{video}-{file.stem}", np.array(Image.open(file)) > 0
                shutil.copy(photos / video / f"{file.stem}.jpg", images / split / f"{name}.jpg")
                label = Image.fromarray((number * inside).astype(np.uint8))
                label.save(labels / split / f"{name}.png")
                left, top, right, bottom = label.getbbox() or (0, 0, 0, 0)
                image = {"id": len(listed), "file_name": f"{name}.jpg", "width": label.width, "height": label.height}
                boxes.append({"image_id": image["id"], "bbox": [left, top, right - left, bottom - top]})
                listed.append(image)
        (tables / f"instances_{split}.json").write_text(json.dumps({"images": listed, "annotations": boxes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
