"""Commands of docs/reproduce.md, and stand-ins for the data sets, runs and weights that they name.

Images are empty files: whoever opens one fails.
"""

from __future__ import annotations

import json
import re
import shlex
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from selfpatch.cli.main import main
from selfpatch.config.run import RunConfig
from selfpatch.core.dry_run import dry_run
from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.training.factory import make_student_teacher

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
NUM_IMAGES = 4160
"""Training images of the stand-in for ImageNet: a batch of the largest run, and those that are held out."""


def commands() -> list[str]:
    """The commands of the page in its order."""
    return re.findall(r"`((?:selfpatch|torchrun) [^`]+)`", PAGE.read_text(encoding="utf-8"))


def arguments_of(command: str) -> tuple[list[str], int]:
    """The arguments of selfpatch, and the number of processes."""
    words = shlex.split(command)
    if words[0] == "selfpatch":
        return words[1:], 1
    options, arguments = words[1 : words.index("-m")], words[words.index("-m") + 2 :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    return arguments, int(given.get("--nnodes", 1)) * int(given["--nproc-per-node"])


def value_of(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def write_data(root: Path) -> None:
    """Write every data set of the page as it is downloaded, with empty images and labels."""
    for split, count in (("train", NUM_IMAGES), ("val", 40)):
        write_classes(root / "imagenet" / split, count)
        write_classes(root / "flowers" / split, 1600 if split == "train" else 40)
    listed = [path.name for path in sorted((root / "imagenet" / "train").rglob("*.JPEG"))[:1040]]
    write_text(root / "1percent.txt", listed)
    for split, count in (("train2014", 40), ("train2017", 1100), ("val2017", 40)):
        names = touch(root / "coco" / split, (f"{i:012d}.jpg" for i in range(count)))
        write_json(root / "coco" / "annotations" / f"instances_{split}.json", coco(names[:40]))
        if split != "train2014":
            touch(root / "coco" / "stuffthingmaps" / split, (name.replace("jpg", "png") for name in names))
    write_text(root / "coco_20k_filenames.txt", [f"train2014/{i:012d}.jpg" for i in range(10)])
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        touch(root / "DAVIS" / kind / "480p" / "clip", (f"{i:05d}.{ending}" for i in range(4)))
    write_text(root / "DAVIS" / "ImageSets" / "2017" / "val.txt", ["clip"])
    for split in ("training", "validation"):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            touch(root / "ADEChallengeData2016" / kind / split, (f"{i:08d}.{ending}" for i in range(32)))
    write_spair(root / "SPair-71k")
    voc = root / "VOCdevkit" / "VOC2012"
    names = [f"2007_{i:06d}" for i in range(32)]
    for split in ("trainaug", "val"):
        half = names[:20] if split == "trainaug" else names[20:]
        write_text(voc / "ImageSets" / "Segmentation" / f"{split}.txt", half)
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationClassAug", "png")):
        touch(voc / folder, (f"{name}.{ending}" for name in names))
    for split, count in (("train-semi", 160), ("validation", 20)):
        for name in ("n01440764", "n01443537"):
            touch(root / "imagenet-s" / split / name, (f"{name}_{i}.JPEG" for i in range(count)))
            touch(root / "imagenet-s" / f"{split}-segmentation" / name, (f"{name}_{i}.png" for i in range(count)))
    for split, count in (("train", 900), ("val", 20)):
        write_inaturalist(root / "inat2019", split, count)


def touch(folder: Path, names: Iterable[str]) -> list[str]:
    """Make empty files, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    made = list(names)
    for name in made:
        (folder / name).touch()
    return made


def write_text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_json(path: Path, content: Any) -> None:
    write_text(path, [json.dumps(content)])


def write_classes(folder: Path, count: int) -> None:
    for label in range(10):
        name = f"n{label:08d}"
        touch(folder / name, (f"{name}_{i}.JPEG" for i in range(count // 10)))


def coco(names: list[str]) -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "width": 640, "height": 480} for i, name in enumerate(names, start=1)]
    box = {"category_id": 1, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
    polygon = [[10, 10, 60, 10, 60, 50, 10, 50]]
    rows = [{"id": one["id"], "image_id": one["id"], "segmentation": polygon, **box} for one in images]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}


def write_spair(root: Path) -> None:
    pair = {
        "category": "cat", "src_imname": "a.jpg", "trg_imname": "b.jpg", "src_kps": [[5, 6]], "trg_kps": [[7, 8]],
        "src_bndbox": [1, 1, 40, 40], "trg_bndbox": [2, 2, 50, 50],
    }  # fmt: skip
    write_text(root / "Layout" / "large" / "test.txt", ["000001-a-b:cat"])
    write_json(root / "PairAnnotation" / "test" / "000001-a-b:cat.json", pair)
    touch(root / "JPEGImages" / "cat", ["a.jpg", "b.jpg"])


def write_inaturalist(root: Path, split: str, count: int) -> None:
    folder = "train_val2019/Plants/1"
    names = touch(root / folder, (f"{split}{i}.jpg" for i in range(count)))
    images = [{"id": i, "file_name": f"{folder}/{name}"} for i, name in enumerate(names)]
    rows = [{"image_id": i, "category_id": i % 2} for i in range(count)]
    write_json(root / f"{split}2019.json", {"images": images, "annotations": rows})


def empty_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes that occupy no disk space, because every number is the same one."""
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


def config_of(arguments: list[str]) -> RunConfig:
    """The configuration that a pre-training command trains with."""
    found: list[RunConfig] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfpatch.api.pretrain.pretrain", lambda config, **_: found.append(config))
        patch.setattr("selfpatch.api.first_checks.check_run", lambda config: None)  # the weights are made from it
        assert main(arguments) == 0
    return found[0]


def write_run(config: RunConfig, folder: Path) -> None:
    """Write a run directory whose checkpoint has the shapes of the run's."""
    with dry_run():
        student_teacher, _ = make_student_teacher(config)
    teacher = student_teacher.teacher
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    shape = teacher.backbone.config.to_dict()
    state = empty_like({f"teacher.{name}": tensor for name, tensor in teacher.state_dict().items()})
    torch.save({"pretrainer": state, "shape": shape}, folder / "checkpoints" / "step-00000001.pt")


def write_released_resnet(path: Path) -> None:
    """Write a ResNet-50 as the code of MoCo saves it, which ReSim and DetCo build on."""
    with dry_run():
        trunk = build_backbone(named_backbone_config("resnet50")).trunk
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"module.encoder_q.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save({"state_dict": empty_like(names)}, path)


def write_tuned(config: RunConfig, path: Path) -> None:
    """Write a fine-tuned network as safetensors: a header, and numbers that the file system does not store."""
    with dry_run():
        student_teacher, _ = make_student_teacher(config)
    backbone = student_teacher.teacher.backbone
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "shape": json.dumps(backbone.config.to_dict())}}
    end = 0
    for name, tensor in backbone.trunk.state_dict().items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
