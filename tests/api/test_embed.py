"""Features of a source in a file: the same after a stop, on two processes, and without unreadable images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import selfpatch
from selfpatch.embedding import encode
from selfpatch.evaluation.encoders import MeanColour
from tests.helpers.command_line import write_photos
from tests.helpers.labelled_images import tiny_encoder
from tests.helpers.workers import WorkerPool

SETTINGS = {"features": ("image", "patches"), "resolution": (16, 24), "batch_size": 2, "workers": 0, "device": "cpu"}


def same_arrays(a: Path, b: Path) -> bool:
    one, other = selfpatch.read_embeddings(a), selfpatch.read_embeddings(b)
    equal = all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    return equal and one.names == other.names and one.arrays.keys() == other.arrays.keys()


def test_a_folder(tmp_path: Path) -> None:
    photos, encoder = write_photos(tmp_path / "photos", 5), tiny_encoder("vit")
    path = selfpatch.embed(encoder, photos, tmp_path / "f.safetensors", **SETTINGS, dtype="float32")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.safetensors", "photos"]
    embeddings = selfpatch.read_embeddings(path)
    assert embeddings.names == sorted(file.name for file in photos.iterdir())
    assert repr(embeddings).startswith(f"Embeddings of 5 images of {photos}: ")
    assert "size [5, 2]" in repr(embeddings)
    assert embeddings.arrays["size"].tolist() == [[48, 48]] * 5
    assert embeddings.arrays["patches"].shape == (5, 2, 3, encoder.dim)
    assert embeddings.metadata["resolution"] == "[16, 24]"
    assert np.ptp(embeddings.vectors("image"), axis=0).max() > 0


def test_a_stopped_call_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, encoder = write_photos(tmp_path / "photos", 6), MeanColour(8)
    whole = selfpatch.embed(encoder, photos, tmp_path / "whole.npz", **SETTINGS)
    out, features_of, batches = tmp_path / "out.npz", encode.features_of, list[int]()

    def stopping(encoder: MeanColour, images: torch.Tensor, config: object) -> dict[str, torch.Tensor]:
        batches.append(len(images))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return features_of(encoder, images, config)

    monkeypatch.setattr(encode, "features_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        selfpatch.embed(encoder, photos, out, **SETTINGS)
    assert (tmp_path / "out.npz.partial").is_dir()
    with pytest.raises(ValueError, match=r"another request \(dtype was 'float16' and is 'int8'\)"):
        selfpatch.embed(encoder, photos, out, **SETTINGS, dtype="int8")
    other = MeanColour(8)
    monkeypatch.setattr(other, "patches", lambda images: 2 * encoder.patches(images))
    with pytest.raises(ValueError, match=r"another request \(encoder was "):
        selfpatch.embed(other, photos, out, **SETTINGS)
    selfpatch.embed(encoder, photos, out, **SETTINGS)
    assert batches == [2, 2, 2, 2]
    assert same_arrays(whole, out)
    with pytest.raises(ValueError, match="exists; remove it, or name another --out"):
        selfpatch.embed(encoder, photos, out, **SETTINGS)


def test_unreadable_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    good = selfpatch.embed(MeanColour(8), photos, tmp_path / "good.npz", **SETTINGS)
    (photos / "00000-bad.jpg").write_bytes(b"bad")
    out = selfpatch.embed(MeanColour(8), photos, tmp_path / "out.npz", **SETTINGS)
    assert same_arrays(good, out)
    assert "left out: 1 image that could not be read" in capsys.readouterr().out
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"no image can be read \(1 tried\), e\.g\. cannot read .*a\.jpg"):
        selfpatch.embed(MeanColour(8), tmp_path / "bad", tmp_path / "none.npz", **SETTINGS)
    (tmp_path / "bad" / "a.jpg").write_bytes(next(photos.glob("*1*")).read_bytes())
    assert selfpatch.embed(MeanColour(8), tmp_path / "bad", tmp_path / "none.npz", **SETTINGS).is_file()


def test_frames_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    from tests.embedding.test_videos import write_video

    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "a.mp4")
    write_video(clips / "b.mkv")
    encoder = MeanColour(8)
    alone = selfpatch.embed(encoder, clips, tmp_path / "alone.npz", **SETTINGS, every=4)
    shared = selfpatch.embed(encoder, clips, tmp_path / "shared.npz", **{**SETTINGS, "workers": 2}, every=4)
    assert same_arrays(alone, shared)
    found = selfpatch.read_embeddings(alone)
    assert found.names[:2] == ["a.mp4#t=0.000", "a.mp4#t=0.400"]
    assert len(found.names) == 14
    assert found.arrays["size"].tolist() == [[64, 48]] * 14
    one = selfpatch.read_embeddings(selfpatch.embed(encoder, clips / "b.mkv", tmp_path / "one.npz", **SETTINGS))
    assert one.names == ["b.mkv#t=0.000", "b.mkv#t=1.000", "b.mkv#t=2.000"]
    with pytest.raises(ValueError, match=r"no images in .*clips, but 2 videos; give --fps 1 to take their frames"):
        selfpatch.embed(encoder, clips, tmp_path / "none.npz", **SETTINGS)
    with pytest.raises(ValueError, match="fps is 2 and every is 3; give one of them"):
        selfpatch.embed(encoder, clips, tmp_path / "none.npz", **SETTINGS, fps=2, every=3)
    with pytest.raises(ValueError, match="no folder or file 'nowhere'; give a video"):
        selfpatch.embed(encoder, "nowhere", tmp_path / "none.npz", **SETTINGS, fps=2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need PyAV; install it with `pip install 'selfpatch\[video\]'`"):
        selfpatch.embed(encoder, clips, tmp_path / "none.npz", **SETTINGS, fps=2)


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    photos, encoder = write_photos(tmp_path / "photos", 5), tiny_encoder("vit")
    report = selfpatch.embed(encoder, photos, tmp_path / "f.npz", **SETTINGS, limit=4, dry_run=True)
    per_image = 2 * 4 + 2 * encoder.dim * (1 + 2 * 3)  # size in int32, an image feature and 2 x 3 patches in float16
    assert report.data == {"images": 4, "bytes of the features": 4 * per_image}
    assert report.memory["activations"] > 0
    assert report.flops["encoding all images"] == 4 * report.flops["forward pass of one image"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_size_below_a_patch(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    with pytest.raises(ValueError, match="resolution is 24 x 7; use sides of at least a patch, 8 pixels"):
        selfpatch.embed(MeanColour(8), photos, tmp_path / "f.npz", **{**SETTINGS, "resolution": (7, 24)})


def embed_together(rank: int, photos: str, out: str) -> None:
    selfpatch.embed(MeanColour(8), photos, out, **SETTINGS)


@pytest.mark.slow
def test_processes_share_the_images(pool: WorkerPool, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    alone = selfpatch.embed(MeanColour(8), photos, tmp_path / "alone.npz", **SETTINGS)
    pool.run(embed_together, str(photos), str(tmp_path / "both.npz"))
    assert same_arrays(alone, tmp_path / "both.npz")
