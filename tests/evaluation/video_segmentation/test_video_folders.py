"""Layouts of YouTube-VOS and MOSE: objects that start late, seen and unseen classes, masks for a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfpatch.api.evaluate import evaluate as api_evaluate
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.video_segmentation.clip import write_mask
from selfpatch.evaluation.video_segmentation.config import FIRST_MASK, DAVISConfig
from selfpatch.evaluation.video_segmentation.dataset import open_clips
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from selfpatch.evaluation.video_segmentation.video_folders import VideoClip
from selfpatch.evaluation.video_segmentation.visualize import Frame
from tests.evaluation.video_segmentation.conftest import write_videos
from tests.evaluation.video_segmentation.test_propagation import Witness

CONFIG = DAVISConfig(resolution=64, radius=4, context_frames=2)


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def plain_j(folder: Path, truth: Path, video: str, value: int, frames: list[str]) -> float:
    """Return the mean IoU of an object over frames, pixel sets counted one by one."""
    values = []
    for frame in frames:
        a, b = (masks_of(root / video)[frame] == value for root in (folder, truth))
        values.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    return float(np.mean(values))


def test_objects_start_where_their_first_mask_is(tmp_path: Path) -> None:
    """Masks of a validation set hold no label for objects that started before, which is not background."""
    toy, other = open_clips(write_videos(tmp_path / "vos", truth=False) / "valid", CONFIG)
    assert isinstance(toy, VideoClip)
    assert (toy.objects, toy.starts, toy.has_truth) == ((1, 4), (1, 3), False)
    assert [frame for frame in range(6) if toy.given(frame) is not None] == [1, 3]
    given = toy.given(3)
    assert given is not None
    assert np.unique(given).tolist() == [0, 2]
    assert [toy.is_written(frame) for frame in range(6)] == [False, *[True] * 5]
    assert (other.objects, other.starts) == ((2,), (0,))


def test_scores_equal_plain_loops(tmp_path: Path) -> None:
    """Each object counts in its listed frames after the given one; G is the mean over seen and unseen classes."""
    root, out = write_videos(tmp_path / "vos"), tmp_path / "out"
    truth = root / "valid" / "Annotations"
    result = evaluate(MeanColour(8), root / "valid", CONFIG, Output(out))
    listed = {("toy", 1): "seen", ("toy", 4): "unseen", ("other", 2): "seen"}
    assert {(row["sequence"], row["object"]): row["classes"] for row in result.rows} == listed
    for row in result.rows:
        video, value = str(row["sequence"]), int(row["object"])
        start = {("toy", 1): 1, ("toy", 4): 3, ("other", 2): 0}[video, value]
        frames = [f"{5 * i:05d}" for i in range(start, 6)]
        expected, with_the_given = (plain_j(out / "results", truth, video, value, x) for x in (frames[1:], frames))
        assert row["J-Mean"] == pytest.approx(expected)
        assert row["J-Mean"] != pytest.approx(with_the_given), "the given mask does not count"
        assert expected > 0.6, "squares of whole patches are followed"
    j, f = ({key: row[f"{m}-Mean"] for key, row in zip(listed, result.rows, strict=True)} for m in "JF")
    parts = [(scores["toy", 1] + scores["other", 2]) / 2 for scores in (j, f)] + [j["toy", 4], f["toy", 4]]
    assert result.metrics["G"] == pytest.approx(np.mean(parts))
    assert [result.metrics[n] for n in ("J-seen", "F-seen", "J-unseen", "F-unseen")] == pytest.approx(parts)
    assert result.metrics["J-Mean"] == pytest.approx(np.mean([*j.values()]))
    assert result.settings["layout"] == "folders with meta.json"


def test_masks_for_a_server(tmp_path: Path) -> None:
    """Palette PNGs of the listed frames, in the values of the files; nothing is scored, and the result says so."""
    data, out = write_videos(tmp_path / "vos", truth=False) / "valid", tmp_path / "out"
    result = evaluate(MeanColour(8), data, CONFIG, Output(out))
    masks = masks_of(out / "results" / "toy")
    assert list(masks) == [f"{5 * i:05d}" for i in range(1, 6)], "the frame before the first object is not listed"
    assert [np.unique(mask).tolist() for mask in masks.values()] == [[0, 1], [0, 1], *[[0, 1, 4]] * 3]
    given = masks_of(data / "Annotations" / "toy")["00015"]
    assert np.array_equal(masks["00015"] == 4, given == 4)
    assert Image.open(out / "results" / "toy" / "00010.png").mode == "P"
    assert (result.metrics, result.rows) == ({}, [])
    assert result.notes == ["sequences without masks to score with, which are not in the numbers: 2 (toy, other)"]
    with pytest.raises(ValueError, match=r"no masks to score with; name a folder \(--out\)"):
        evaluate(MeanColour(8), data, CONFIG)
    with pytest.raises(ValueError, match="no sequence of toy, other has masks to score with"):
        evaluate(None, data, DAVISConfig(results=str(out / "results")))


def test_captions_name_the_frames_in_which_objects_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[list[str]] = []

    def strip(frames: Sequence[Frame]) -> Image.Image:
        captions.append([frame.caption for frame in frames])
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr("selfpatch.evaluation.video_segmentation.evaluate.strip", strip)
    evaluate(None, write_videos(tmp_path / "vos", frames=5) / "valid", CONFIG, Output(tmp_path / "out"))
    names = [f"frame {number:05d}" for number in (0, 5, 10, 15, 20)]
    assert captions == [
        [names[0], f"{names[1]} (given)", names[2], f"{names[3]} (given)", names[4]],
        [f"{names[0]} (given)", *names[1:]],
    ]


def test_written_masks_have_the_same_scores(tmp_path: Path) -> None:
    data, out = write_videos(tmp_path / "vos") / "valid", tmp_path / "out"
    for weights in (FIRST_MASK, MeanColour(8)):
        result = api_evaluate("davis", weights, data, CONFIG, out=out)
        again = evaluate(None, data, DAVISConfig(results=str(out / "results")))
        assert again.metrics == pytest.approx(result.metrics)
        assert result.degenerate == []


def test_folders_without_a_list(tmp_path: Path) -> None:
    """As in MOSE, masks alone say where objects start; DINOv3 follows those of the first mask only."""
    data = write_videos(tmp_path / "mose", meta=False) / "valid"
    result = evaluate(MeanColour(8), data, CONFIG)
    assert [(row["sequence"], row["object"]) for row in result.rows] == [("other", 2), ("toy", 1), ("toy", 4)]
    assert "G" not in result.metrics
    early = DAVISConfig.from_settings({"preset": "dinov3", "resolution": 64})
    assert [row["object"] for row in evaluate(MeanColour(8), data, early).rows] == [2, 1]
    (tmp_path / "part.txt").write_text("toy\n")
    part = DAVISConfig(resolution=64, sequence_list=str(tmp_path / "part.txt"))
    assert [clip.name for clip in open_clips(data, part)] == ["toy"]


def test_listed_objects_without_a_mask_are_left_out(tmp_path: Path) -> None:
    data = write_videos(tmp_path / "vos") / "valid"
    _edit(data / "meta.json", lambda meta: meta["videos"]["toy"]["objects"].update({"9": {"frames": ["00010"]}}))
    _edit(data / "meta.json", lambda meta: meta["videos"]["toy"]["objects"]["1"].pop("category"))
    result = evaluate(MeanColour(8), data, CONFIG)
    assert [(row["class"], row["classes"]) for row in result.rows] == [("", ""), ("ape", "unseen"), ("dog", "seen")]
    assert result.notes == ["left out: 1 object that toy lists and none of its masks shows"]


@pytest.mark.slow
def test_memory_grows_with_starts_only(tmp_path: Path) -> None:
    """While a frame is encoded, those with given masks and the few before it are held."""
    data = write_videos(tmp_path / "vos", frames=7) / "valid"
    witness = Witness(8)
    evaluate(witness, data, DAVISConfig(resolution=64, context_frames=2, sequences=("toy",)))
    before = witness.alive[0]
    assert [alive - before for alive in witness.alive] == [0, 1, 2, 3, 4, 4]


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _masks(root: Path, mask: np.ndarray) -> None:
    for path in (root / "Annotations" / "toy").iterdir():
        write_mask(path, mask)


def _meta(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda root: _edit(root / "meta.json", lambda meta: change(meta["videos"]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "JPEGImages/toy/00010.jpg").unlink(), r"toy has no image 00010\.jpg, which meta\.json"),
        (lambda root: shutil.rmtree(root / "Annotations/toy"), "video 'toy' has no folder"),
        (lambda root: [path.unlink() for path in (root / "Annotations/toy").iterdir()], "toy has no mask in"),
        (
            _meta(lambda videos: videos["toy"]["objects"].update({"x": {"frames": ["00000"]}})),
            "the object 'x' of toy; objects have numbers from 1 to 254",
        ),
        (
            _meta(lambda videos: videos["toy"]["objects"].update({"01": {"frames": ["00000"]}})),
            "the object '01' of toy; objects have numbers from 1 to 254",
        ),
        (
            _meta(lambda videos: videos["toy"]["objects"]["1"].update(frames=[])),
            r"meta\.json has the videos\.toy\.objects\.1\.frames",
        ),
        (_meta(lambda videos: videos.update({"../toy": videos["toy"]})), r"names '\.\./toy', which leads out of"),
        (
            lambda root: write_mask(root / "Annotations/toy/00015.png", np.full((8, 8), 4, np.uint8)),
            r"the mask .*00015\.png is 8 x 8 and the first one of toy 96 x 64",
        ),
        (lambda root: _masks(root, np.zeros((64, 96), np.uint8)), "no mask of toy holds an object"),
    ],
)
def test_folders_that_cannot_be_evaluated(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    data = write_videos(tmp_path / "vos") / "valid"
    spoil(data)
    with pytest.raises(ValueError, match=message):
        evaluate(MeanColour(8), data, CONFIG, Output(tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "before any frame is processed"


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos")
    with pytest.raises(ValueError, match=r"give the folder of a split, e\.g\. .*valid"):
        open_clips(root, CONFIG)
    with pytest.raises(ValueError, match=r"year is 2017, but .* is no DAVIS"):
        open_clips(root / "valid", DAVISConfig(year=2017))
    with pytest.raises(ValueError, match="video 'cow' has no folder"):
        open_clips(root / "valid", DAVISConfig(sequences=("cow",)))
    with pytest.raises(ValueError, match="both sequences and sequence_list"):
        DAVISConfig(sequences=("toy",), sequence_list="list.txt")


def write_video(root: Path, *, start: int, value: int) -> Path:
    """Write four frames of a rectangle that moves, and its masks from one frame on."""
    for frame in range(4):
        shape = np.zeros((64, 96), np.uint8)
        shape[16:32, 8 + 8 * frame : 40 + 8 * frame] = 1
        for folder, pixels in (("JPEGImages", 255 * shape), ("Annotations", value * shape * (frame >= start))):
            path = root / folder / "toy" / f"{frame:05}.{'jpg' if folder == 'JPEGImages' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.mark.parametrize("start", [0, 1])
def test_black_and_white_masks_have_one_object(tmp_path: Path, start: int) -> None:
    """Many tools write an object in white; in masks that have numbers, 255 is void."""
    white, one = (write_video(tmp_path / f"{value}", start=start, value=value) for value in (255, 1))
    (clip,) = open_clips(white, CONFIG)
    assert (clip.objects, clip.starts) == ((1,), (start,))
    scores = [evaluate(MeanColour(8), root, CONFIG, Output(root / "out")).metrics for root in (white, one)]
    assert scores[0] == scores[1]
    assert scores[0]["J-Mean"] > 0.3
    numbered = np.full((64, 96), 255, np.uint8)
    numbered[0, 0] = 1
    Image.fromarray(numbered).save(white / "Annotations" / "toy" / "00003.png")
    (clip,) = open_clips(white, CONFIG)
    assert (clip.objects, clip.starts) == ((1,), (3,))


def test_a_part_of_the_videos(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos") / "valid"
    assert [clip.name for clip in open_clips(root, replace(CONFIG, limit=1))] == ["toy"]
