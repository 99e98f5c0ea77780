"""Images in tar shards and the same images in folders: equal pixels, errors, batches, meters and runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.config.sections import CropConfig, LoaderConfig
from selfpatch.data.augment.backends import Name
from selfpatch.data.augment.multicrop import dino_views
from selfpatch.data.collate import Batch
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.pillow import BadImage, Picture, read_image, read_picture
from selfpatch.data.images import load_images
from selfpatch.data.loader import CropLoader
from selfpatch.data.sources.image_files import ImageFile, ShardMember
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import channel_statistics
from selfpatch.evaluation.classification.dataset import open_splits
from tests.end_to_end.test_resume import start, wait_for_steps
from tests.helpers.command_line import TINY, differences, final_state, run
from tests.helpers.shard_files import photo, write_shard, write_twins

RECIPES = dino_views(CropConfig(global_size=32, local_size=16, num_local=2))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageIndex, ImageIndex]:
    """Forty photographs in three shards and in folders, with the same indices."""
    root = tmp_path_factory.mktemp("twins")
    shards = {
        f"{shard}.tar": {f"{i:02d}.{'png' if i % 3 else 'jpg'}": photo(i) for i in range(shard, 40, 3)}
        for shard in range(3)
    }
    in_shards, in_folders = write_twins(root, shards)
    return ImageIndex.open(in_shards, root / "cache"), ImageIndex.open(in_folders, root / "cache")


def outcome(read, file: ImageFile, channels: int) -> np.ndarray | str:
    """Return the pixels, or the reason why the file cannot be read."""
    try:
        picture: Picture = read(file, channels)
    except BadImage as error:
        return str(error).replace(str(file), "FILE")
    return np.asarray(picture) if isinstance(picture, Image.Image) else picture.pixels.numpy()


def encodings() -> dict[str, bytes]:
    """The files cover every branch of the readers, and every kind of damage."""
    jpeg, png = photo(0, "jpg"), photo(0, "png")
    deep = (np.arange(40 * 48, dtype=np.uint16) * 30).reshape(40, 48)
    whole = {f"whole.{e}": photo(1, e) for e in ("jpg", "png", "webp", "bmp", "ppm", "tif", "gif", "tga")}
    return whole | {
        "deep.png": _saved(Image.fromarray(deep), "PNG"),
        "deep.tif": _saved(Image.fromarray(deep), "TIFF"),
        "grey.jpg": _saved(Image.fromarray(np.uint8(deep >> 8)), "JPEG"),
        "cmyk.jpg": _saved(Image.new("CMYK", (9, 8), (9, 99, 199, 0)), "JPEG"),
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2],
        "half.tif": whole["whole.tif"][:100],
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "zeros.jpg": jpeg[:3] + bytes(5000),
    }


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("read", [read_picture, read_fast])
@pytest.mark.parametrize("channels", [3, 1, 4])
def test_every_reader_reads_the_same_and_says_the_same_of_damage(tmp_path: Path, read, channels: int) -> None:
    stored = encodings()
    shards, folders = (ImageIndex.open(root, tmp_path / "cache") for root in write_twins(tmp_path, {"s.tar": stored}))
    outcomes = {}
    for i in range(len(stored)):
        expected = outcome(read, folders.file(i), channels)
        np.testing.assert_array_equal(outcome(read, shards.file(i), channels), expected)
        outcomes[shards.path(i).name] = expected
    readable = {name for name, found in outcomes.items() if not isinstance(found, str)}
    assert {"deep.png", "deep.tif", "grey.jpg"} <= readable if channels == 1 else readable
    assert readable.isdisjoint({"half.jpg", "half.png", "empty.jpg", "text.jpg", "zeros.jpg"})


def tensors(batch: Batch) -> list[torch.Tensor]:
    views = batch.to("cpu")
    return [t for t in (views.global_crops, views.local_crops, views.boxes, views.samples) if t is not None]


@pytest.mark.parametrize("renderer", ["plain", "fast", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches(twins: tuple[ImageIndex, ImageIndex], renderer: Name, workers: int) -> None:
    if renderer == "fast":
        pytest.importorskip("cv2")
    streams = [
        CropLoader(
            index, np.arange(40), RECIPES, LoaderConfig(workers=count, render=renderer), batch_size=10, seed=3
        ).steps(2, 8)
        for index, count in zip(twins, (workers, 0), strict=True)
    ]
    for step, other in zip(*streams, strict=True):
        for a, b in zip(tensors(step[0]), tensors(other[0]), strict=True):
            assert torch.equal(a, b)


def test_meters_see_the_same_images(twins: tuple[ImageIndex, ImageIndex]) -> None:
    (shards, folders), indices = twins, np.arange(0, 40, 3)
    assert torch.equal(load_images(shards, indices, 24).images, load_images(folders, indices, 24).images)
    assert channel_statistics(shards, indices, 3) == channel_statistics(folders, indices, 3)
    assert shards.fingerprint == folders.fingerprint


def test_evaluations_take_shards(tmp_path: Path) -> None:
    for split, first in [("train", 0), ("val", 10)]:
        for shard in range(2):
            members = {f"{name}/{shard}{i}.jpg": photo(first + i) for name in ("cat", "dog") for i in range(3)}
            write_shard(tmp_path / split / f"{shard}.tar", members)
    train, test = open_splits(tmp_path)
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert test.name(11) == "1.tar/dog/12.jpg"
    np.testing.assert_array_equal(np.asarray(test.read(11, 3)), np.asarray(read_image(test.index.file(11))))


def read_in_a_process(index: ImageIndex, i: int) -> bytes:
    return read_image(index.file(i)).tobytes()


@pytest.mark.slow
def test_a_process_that_shares_nothing_reads_the_same(twins: tuple[ImageIndex, ImageIndex]) -> None:
    """Workers that are spawned, not forked, share nothing."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(read_in_a_process, twins[0], 17).result() == read_in_a_process(twins[1], 17)


def test_an_index_of_many_members_is_a_few_numbers_for_each(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", {f"{i:05d}.jpg": b"" for i in range(5000)})
    index = ImageIndex.open(shard, tmp_path / "cache")
    assert len(pickle.dumps(index)) < 5000 * (len("s.tar/00000.jpg") + 4 * 8) + 2000


def test_bad_members_are_replaced_and_named(tmp_path: Path) -> None:
    members = {f"{i}.jpg": photo(i) for i in range(20)} | {"bad.jpg": b"no image"}
    shard = write_shard(tmp_path / "s.tar", members)
    index = ImageIndex.open(shard, tmp_path / "cache")
    loader = CropLoader(
        index, np.arange(21), RECIPES, LoaderConfig(workers=2, max_bad=0.2, render="plain"), batch_size=7, seed=0
    )
    list(loader.steps(0, 3))
    (bad,) = loader.bad.items()
    assert bad[0] == f"{shard}/bad.jpg"
    assert bad[1].startswith("it is empty, damaged, or no image of a format that is read (JPEG, PNG, ")


@pytest.mark.parametrize("read", [read_picture, read_fast])
def test_a_shard_that_has_been_cut_short_or_gone_since(tmp_path: Path, read) -> None:
    shard = write_shard(tmp_path / "s.tar", {"a.jpg": photo(0), "b.jpg": photo(1)})
    index = ImageIndex.open(shard, tmp_path / "cache")
    member = index.file(1)
    assert isinstance(member, ShardMember)
    shard.write_bytes(shard.read_bytes()[: member.offset + 100])
    assert outcome(read, index.file(0), 3).shape[-1] in (3, 48)
    assert outcome(read, member, 3) == f"cannot read FILE: the file ends after 100 of its {member.size} bytes"
    shard.unlink()
    assert outcome(read, member, 3) == "cannot read FILE: No such file or directory"


@pytest.mark.slow
def test_a_run_on_shards_is_that_on_folders_and_resumes_exactly(tmp_path: Path) -> None:
    """The meters of held-out and labelled images are equal too. It resumes in mid-epoch with other workers."""
    shards = {
        f"{name}/{shard}.tar": {f"{i}.png": photo(10 * shard + i, "png") for i in range(10)}
        for shard, name in enumerate(("x", "x", "y", "y"))
    }
    in_shards, in_folders = write_twins(tmp_path / "data", shards)
    options = [*TINY, "--epochs", "6", "--watch.evaluate-every", "20", "--checkpoint.every-steps", "7"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run(tmp_path, "pretrain", "--data", str(in_folders), "--out", str(whole), *options, "--loader.workers", "0")
    assert done.returncode == 0, done.stderr
    process = start(
        tmp_path, "pretrain", "--data", str(in_shards), "--out", str(stopped), *options, "--loader.workers", "2"
    )
    wait_for_steps(process, stopped, 12)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert 0 < final_state(stopped)["step"] < final_state(whole)["step"]
    missing = (in_shards / "y" / "2.tar").rename(tmp_path / "2.tar")
    refused = run(tmp_path, "resume", str(stopped))
    assert refused.returncode == 2
    assert "are no longer those" in " ".join(refused.stderr.split())
    missing.rename(in_shards / "y" / "2.tar")
    done = run(tmp_path, "resume", str(stopped), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "IMAGE" in done.stdout
    assert differences(final_state(stopped), final_state(whole)) == []
    assert meters(stopped) == meters(whole)
    assert {name.split()[1] for name in meters(whole)} == {"loss", "view_matching", "knn_top1"}
    assert json.loads((stopped / "data.json").read_text())["images"] == 40


def meters(out: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("view_matching", "knn_top1", "loss")
    return {f"{row['step']} {name}": row[name] for row in rows for name in names if name in row}


@pytest.mark.slow
def test_real_shards_are_cropped(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "tiny_imagenet_shards"
    if not folder.is_dir():
        pytest.skip(f"no shards at {folder}")
    index = ImageIndex.open(folder, tmp_path / "cache")
    loader = CropLoader(
        index, np.arange(len(index)), RECIPES, LoaderConfig(workers=1, render="plain"), batch_size=250, seed=0
    )
    for (batch,) in loader.steps(0, 4):
        assert batch.to("cpu").global_crops.shape == (2, 250, 3, 32, 32)
    assert not loader.bad
