"""DAVIS: scores against the official scorer, the protocol on real and drawn clips, the layouts, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.evaluation.baselines import MeanColour, RawPatch
from selfpatch.evaluation.result import Provenance, Result
from selfpatch.evaluation.video_segmentation.dataset import PALETTE, open_clips, read_mask, write_mask
from selfpatch.evaluation.video_segmentation.evaluate import evaluate, network_size, repeat_first_mask, to_mask
from selfpatch.evaluation.video_segmentation.metrics import score
from tests.helpers.command_line import write_davis
from tests.helpers.largest_tensor import LargestTensor

Tree = Callable[..., Path]


@pytest.mark.parametrize("name", ["shifted", "swapped"])
def test_official_scores_of_several_objects(name: str, full_golden_dir: Path) -> None:
    folder = full_golden_dir / "davis_metric"
    expected = json.loads((folder / "expected.json").read_text())[name]
    result = score(folder / "results" / name, folder / "DAVIS")
    assert result.metrics == pytest.approx(expected["global_means"], abs=1e-9)
    for measure in "JF":
        mine = {f"{row['sequence']}_{row['object']}": row[f"{measure}-Mean"] for row in result.rows}
        assert mine == pytest.approx(expected[f"{measure}_per_object"], abs=1e-9)


def test_official_scores_of_osvos(data_dir: Path) -> None:
    expected = json.loads((data_dir / "davis" / "oracle" / "scores.json").read_text())
    names = [name.removesuffix("_1") for name in expected["sequences"]]
    result = score(data_dir / "davis" / "oracle" / "osvos", data_dir / "davis", sequences=names)
    assert result.metrics == pytest.approx(expected["global"], abs=1e-9)


@pytest.mark.slow
def test_the_floor(data_dir: Path) -> None:
    metrics = repeat_first_mask(data_dir / "davis").metrics
    assert (metrics["J-Mean"], metrics["F-Mean"]) == pytest.approx((0.2325, 0.1961), abs=5e-5)


def test_mean_colour_on_a_real_clip(data_dir: Path, tmp_path: Path) -> None:
    """The first frames of a real clip: colours follow the dog better than a mask that stands still."""
    tree = _copy_frames(data_dir / "davis", tmp_path / "davis", "dog", 8)
    result = evaluate(MeanColour(16), tree, out=tmp_path / "out", weights=Provenance("mean colour"))
    floor = repeat_first_mask(tree)
    assert result.metrics["J-Mean"] > floor.metrics["J-Mean"] + 0.03
    again = score(tmp_path / "out" / "results", tree)
    assert again.metrics == pytest.approx(result.metrics)
    assert Result.load(tmp_path / "out" / "result.json") == result
    mask = Image.open(tmp_path / "out" / "results" / "dog" / "00003.png")
    assert (mask.mode, mask.size, mask.getpalette()[3:9]) == ("P", (854, 480), [128, 0, 0, 0, 128, 0])
    first = read_mask(tmp_path / "out" / "results" / "dog" / "00000.png", 2017)
    assert np.array_equal(first, read_mask(tree / "Annotations" / "480p" / "dog" / "00000.png", 2017))
    assert Image.open(tmp_path / "out" / result.pictures[0]).size == (5 * 427, 240)


def _copy_frames(source: Path, target: Path, name: str, count: int) -> Path:
    for kind, suffix in [("JPEGImages", "jpg"), ("Annotations", "png")]:
        (target / kind / "480p" / name).mkdir(parents=True)
        for i in range(count):
            file = f"{kind}/480p/{name}/{i:05d}.{suffix}"
            shutil.copy(source / file, target / file)
    (target / "ImageSets" / "2017").mkdir(parents=True)
    (target / "ImageSets" / "2017" / "val.txt").write_text(name + "\n")
    return target


COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 60, 220]], np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Draws a clip `toy`: two squares of 32 pixels, one red (1), one blue (2), 16 pixels further in each frame."""

    def draw(frames: int = 6, size: tuple[int, int] = (128, 192), colours: np.ndarray = COLOURS) -> Path:
        root = tmp_path / "davis"
        (root / "ImageSets" / "2017").mkdir(parents=True)
        (root / "ImageSets" / "2017" / "val.txt").write_text("toy\n")
        (root / "JPEGImages" / "480p" / "toy").mkdir(parents=True)
        for i in range(frames):
            mask = np.zeros(size, np.uint8)
            mask[16:48, 16 * i : 16 * i + 32] = 1
            mask[80:112, 160 - 16 * i : 192 - 16 * i] = 2
            Image.fromarray(colours[mask]).save(root / f"JPEGImages/480p/toy/{i:05d}.jpg", quality=95, subsampling=0)
            write_mask(root / f"Annotations/480p/toy/{i:05d}.png", mask)
        return root

    return draw


def test_two_objects_are_followed(tree: Tree) -> None:
    """Squares of whole patches that move by whole patches: wrong only where upsampling rounds their corners."""
    result = evaluate(MeanColour(16), tree(), resolution=128, context_frames=2)
    assert [(row["sequence"], row["object"]) for row in result.rows] == [("toy", 1), ("toy", 2)]
    assert all(row["J-Mean"] > 0.8 for row in result.rows)
    assert result.settings["radius"] == 12
    assert result.settings["sequences"] == ["toy"]


def test_an_object_leaves_the_window(tree: Tree) -> None:
    """With radius 0 a patch asks its own place only, so that nothing moves: the floor."""
    root = tree()
    still = evaluate(MeanColour(16), root, resolution=128, radius=0).metrics
    assert still["J-Mean"] == pytest.approx(repeat_first_mask(root).metrics["J-Mean"], abs=0.05)


class Recorder(MeanColour):
    def __init__(self, patch_size: int) -> None:
        super().__init__(patch_size)
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.inputs: list[Tensor] = []

    def patches(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return super().patches(images)


@pytest.mark.parametrize(("std", "red"), [("released", 0.228), ("encoder", 0.229)])
def test_what_the_encoder_sees(tree: Tree, std: str, red: float) -> None:
    """Frame by frame, at the released script's size, normalised with its own standard deviation."""
    recorder = Recorder(16)
    evaluate(recorder, tree(colours=np.full((3, 3), 255, np.uint8)), resolution=96, std=std)
    assert [tuple(images.shape) for images in recorder.inputs] == [(1, 3, 96, 128)] * 6  # 96 * 192 / 128 = 144 -> 128
    white = (1 - torch.tensor(recorder.mean)) / torch.tensor([red, 0.224, 0.225])
    torch.testing.assert_close(recorder.inputs[0][0, :, 5, 5], white)


@pytest.mark.parametrize(
    ("frame", "patch_size", "expected"),
    [
        ((480, 854), 16, (480, 832)),
        ((480, 910), 8, (480, 896)),
        ((854, 480), 16, (832, 480)),
        ((480, 480), 16, (480, 448)),  # as released: the long side is floored though it is no longer then
        ((480, 854), 14, (476, 854 // 14 * 14)),
    ],
)
def test_network_size(frame: tuple[int, int], patch_size: int, expected: tuple[int, int]) -> None:
    assert network_size(*frame, 480, patch_size) == expected


def test_network_size_below_64_pixels() -> None:
    assert network_size(100, 100, 50, 8) == (48, 48)
    assert network_size(100, 120, 50, 8) == (48, 56)
    assert network_size(100, 130, 50, 8) == (48, 64)


def test_released_masks_from_soft_labels(golden_dir: Path) -> None:
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    for labels, mask in zip(tensors["vos.soft_labels"], tensors["vos.masks_x16"], strict=True):
        assert np.array_equal(to_mask(labels, 16, tuple(mask.shape)), mask.numpy())


def test_a_frame_of_one_object(tree: Tree) -> None:
    """An object that covers the whole first frame keeps it, though its channel has no range to normalise."""
    root = tree(frames=4)
    for i in range(4):
        write_mask(root / f"Annotations/480p/toy/{i:05d}.png", np.ones((128, 192), np.uint8))
    assert evaluate(MeanColour(16), root, resolution=128).metrics["J-Mean"] == 1.0


def test_progress(tree: Tree) -> None:
    seen: list[tuple[str, int, int]] = []
    repeat_first_mask(tree(frames=3), progress=lambda *report: seen.append(report))
    assert seen == [("toy", 1, 3), ("toy", 2, 3), ("toy", 3, 3)]


def test_the_layout_of_2016(tree: Tree) -> None:
    """Lines of file pairs, grey and RGB masks of 0 and 255, one object."""
    root = tree(frames=4)
    shutil.rmtree(root / "ImageSets" / "2017")
    (root / "ImageSets" / "480p").mkdir()
    lines = [f"/JPEGImages/480p/toy/{i:05d}.jpg /Annotations/480p/toy/{i:05d}.png" for i in range(4)]
    (root / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines) + "\n")
    two = open_clips(root)[0].mask(1)
    for i in range(4):
        path = root / f"Annotations/480p/toy/{i:05d}.png"
        grey = Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8))
        (grey.convert("RGB") if i == 1 else grey).save(path)
    (clip,) = open_clips(root)
    assert (clip.name, clip.year, clip.num_objects) == ("toy", 2016, 1)
    assert np.array_equal(clip.mask(1), two)
    assert len(repeat_first_mask(root).rows) == 1


def test_masks(tmp_path: Path) -> None:
    """Void is background in 2017, unless a grey mask holds nothing else but black."""
    void = np.array([[0, 1, 255, 2]], np.uint8)
    write_mask(tmp_path / "void.png", void)
    assert read_mask(tmp_path / "void.png", 2017).tolist() == [[0, 1, 0, 2]]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", 2017).tolist() == [[0, 1]]
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="mode RGB"):
        read_mask(tmp_path / "colour.png", 2017)


def test_palette() -> None:
    """The first colours of PASCAL VOC, and two whose numbers need more bits."""
    assert PALETTE[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert PALETTE[[8, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]


def test_objects_count_from_the_first_frame(tree: Tree) -> None:
    """One that comes later is not scored; a result that holds it is refused."""
    root = tree(frames=4)
    first = root / "Annotations/480p/toy/00000.png"
    write_mask(first, np.minimum(read_mask(first, 2017), 1))
    assert [row["object"] for row in repeat_first_mask(root).rows] == [1]
    with pytest.raises(ValueError, match="frame 00001 of toy has object 2; the clip has 1"):
        score(root / "Annotations" / "480p", root)


def test_perfect_results(tree: Tree) -> None:
    root = tree()
    metrics = score(root / "Annotations" / "480p", root).metrics
    assert all(metrics[name] == 1 for name in ("J&F-Mean", "J-Mean", "F-Mean", "J-Recall", "F-Recall"))
    assert metrics["J-Decay"] == metrics["F-Decay"] == 0


def test_results_that_cannot_be_scored(tree: Tree, tmp_path: Path) -> None:
    root = tree()
    results = tmp_path / "results"
    results.mkdir()
    with pytest.raises(ValueError, match="no results for toy"):
        score(results, root)
    shutil.copytree(root / "Annotations" / "480p" / "toy", results / "toy")
    for unscored in ("00000.png", "00005.png"):
        (results / "toy" / unscored).unlink()
    assert score(results, root).metrics["J-Mean"] == 1
    write_mask(results / "toy" / "00003.png", np.zeros((64, 96), np.uint8))
    with pytest.raises(ValueError, match=r"frame 00003 of toy has shape \(64, 96\)"):
        score(results, root)
    (results / "toy" / "00003.png").unlink()
    with pytest.raises(ValueError, match=r"no mask .*00003\.png"):
        score(results, root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "Annotations"), "no DAVIS at"),
        (lambda root: shutil.rmtree(root / "ImageSets"), r"no ImageSets/2017/val\.txt or ImageSets/2016"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("toy\ncow\n"), "sequence 'cow' has no folder"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("\n"), "no sequences"),
        (lambda root: (root / "Annotations/480p/toy/00000.png").unlink(), r"no mask .*00000\.png"),
        (lambda root: (root / "Annotations/480p/toy/00004.png").unlink(), r"no mask .*00004\.png"),
        (lambda root: (root / "JPEGImages/480p/toy/00002.jpg").unlink(), r"no image .*00002\.jpg"),
        (
            lambda root: Image.new("RGB", (64, 64)).save(root / "JPEGImages/480p/toy/00000.jpg"),
            "frame 00000 of toy is 64",
        ),
        (
            lambda root: Image.new("RGB", (64, 64)).save(root / "JPEGImages/480p/toy/00002.jpg"),
            "frame 00002 of toy is 64",
        ),
        (
            lambda root: write_mask(root / "Annotations/480p/toy/00000.png", np.zeros((128, 192), np.uint8)),
            "holds no object",
        ),
    ],
)
def test_trees_that_cannot_be_evaluated(tree: Tree, spoil: Callable[[Path], object], message: str) -> None:
    root = tree()
    spoil(root)
    with pytest.raises(ValueError, match=message):
        evaluate(MeanColour(16), root, resolution=128)


def test_settings_that_cannot_be(tree: Tree) -> None:
    root = tree(frames=3)
    for settings, message in [
        ({"std": "imagenet"}, "use released or encoder"),
        ({"context_frames": -1}, "context_frames is -1"),
        ({"resolution": 8}, "resolution 8 is too small"),
        ({"topk": 0}, "topk 0"),
        ({"max_memory": 0}, "max_memory is 0; use 1 MB or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(MeanColour(16), root, **{"resolution": 128, **settings})


@pytest.mark.parametrize("frames", [1, 2])
def test_a_clip_too_short_to_be_scored(tree: Tree, tmp_path: Path, frames: int) -> None:
    """It has masks, one a frame, and no scores, and needs no mask but the first."""
    root = tree(frames=frames)
    (root / "Annotations/480p/toy/00001.png").unlink(missing_ok=True)
    result = evaluate(MeanColour(16), root, out=tmp_path / "out", resolution=128)
    assert (result.metrics, result.rows, result.per_image) == ({}, [], {})
    written = sorted(path.stem for path in (tmp_path / "out" / "results" / "toy").iterdir())
    assert written == [f"{i:05d}" for i in range(frames)]
    assert ("frames/s" in result.costs) == (frames == 2)
    with pytest.raises(ValueError, match="no sequence of toy has 3 frames"):
        score(root / "Annotations" / "480p", root)


def test_a_short_clip_leaves_the_others_their_scores(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "davis", ("first", "second"))
    for i in (1, 2, 3):
        for kind, suffix in [("JPEGImages", "jpg"), ("Annotations", "png")]:
            (root / f"{kind}/480p/second/{i:05d}.{suffix}").unlink()
    both = evaluate(MeanColour(8), root, resolution=48)
    alone = evaluate(MeanColour(8), root, resolution=48, sequences=["first", "first"])
    assert both.metrics == alone.metrics
    assert [row["sequence"] for row in both.rows] == ["first", "first"]
    assert list(both.per_image) == ["first"]


def test_the_means_of_each_sequence(tmp_path: Path) -> None:
    """Means over its objects; the quoted ones are over the objects of all sequences."""
    root = write_davis(tmp_path / "davis", ("first", "second"))
    for i in range(4):  # the second one keeps one object
        path = root / f"Annotations/480p/second/{i:05d}.png"
        write_mask(path, (read_mask(path, 2017) == 1).astype(np.uint8))
    result = repeat_first_mask(root)
    j = [row["J-Mean"] for row in result.rows]
    assert len(j) == 3
    assert result.per_image["first"]["J-Mean"] == pytest.approx((j[0] + j[1]) / 2)
    assert result.per_image["second"]["J-Mean"] == j[2]
    assert result.metrics["J-Mean"] == pytest.approx(sum(j) / 3)
    both = result.per_image["first"]
    assert both["J&F-Mean"] == pytest.approx((both["J-Mean"] + both["F-Mean"]) / 2)


class Witness(RawPatch):
    """Counts the feature maps of frames that are alive whenever it is asked for one more."""

    def __init__(self, patch_size: int) -> None:
        super().__init__(patch_size)
        self.alive: list[int] = []

    def patches(self, images: Tensor) -> Tensor:
        shape = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size, self.dim)
        tensors = [o for o in gc.get_objects() if type(o) is Tensor and o.shape[-3:] == shape]
        self.alive.append(len({t.untyped_storage().data_ptr() for t in tensors}))
        return super().patches(images)


@pytest.mark.parametrize("context_frames", [0, 3])
def test_memory_does_not_grow_with_the_clip(tree: Tree, context_frames: int) -> None:
    """While a frame is encoded, only the first one and the few before it are held."""
    witness = Witness(16)
    evaluate(witness, tree(frames=9), resolution=96, context_frames=context_frames)  # maps of 6 x 8 patches
    before = witness.alive[0]
    assert [alive - before for alive in witness.alive] == [min(i, 1 + context_frames) for i in range(9)]


def test_max_memory_bounds_the_similarities(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks are the same when fewer similarities are held."""
    root = tree()
    plain = evaluate(MeanColour(4), root, resolution=128, radius=50)
    monkeypatch.setattr(evaluate_module, "BYTES_OF_A_COSINE", 20)
    with LargestTensor(torch.ops.aten.mm.default, torch.ops.aten.bmm.default) as largest:
        bounded = evaluate(MeanColour(4), root, resolution=128, radius=50, max_memory=1)
    assert 0 < largest.elements <= 2**20 // 20 < 3 * 1024**2  # 5 frames of 32 x 32 patches ask 5 * 1024 others
    assert bounded.metrics == plain.metrics
    assert bounded == plain, "max_memory is no setting that decides the numbers"


def test_frames_per_second(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Propagated frames by the time between a read picture and its mask: the first frame's features count as time, what
    the caller does with a mask does not."""
    monkeypatch.setattr(evaluate_module, "perf_counter", iter(range(100)).__next__)
    result = evaluate(MeanColour(16), tree(), resolution=128)
    assert result.costs == {"frames/s": 5 / 6}


@pytest.mark.parametrize(("size", "resolution"), [((47, 101), 37), ((101, 47), 50), ((33, 33), 20), ((120, 500), 16)])
def test_sizes_that_nothing_divides(tmp_path: Path, size: tuple[int, int], resolution: int) -> None:
    root = write_davis(tmp_path / "davis", ("toy",))
    for folder, picture in [("JPEGImages", "jpg"), ("Annotations", "png")]:
        for path in (root / folder / "480p" / "toy").glob(f"*.{picture}"):
            Image.open(path).resize(size[::-1], Image.Resampling.NEAREST).save(path)
    for patch_size in (8, 14):
        result = evaluate(MeanColour(patch_size), root, out=tmp_path / str(patch_size), resolution=resolution)
        assert Image.open(tmp_path / str(patch_size) / "results/toy/00003.png").size == size[::-1]
        assert all(0 <= row["J-Mean"] <= 1 for row in result.rows)
