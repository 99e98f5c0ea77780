"""Parquet files as the Hugging Face Hub has them: images, classes, and files without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfpatch.core.disk_cache import SIZE_VARIABLE
from selfpatch.data.sources import parquet as module
from selfpatch.data.sources.index import ImageIndex

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [bytes([i]) * (10 + i) for i in range(7)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def records(images: list[bytes]) -> Any:
    return pa.array([{"bytes": image, "path": None} for image in images])


def read(index: ImageIndex) -> dict[str, bytes]:
    return {index.name(i): index.file(i).read() for i in range(len(index))}  # type: ignore[union-attr]


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "a/b"]}}
    file = write(tmp_path / "train.parquet", {"label": [0, 1, 0, 1, 0, 1, 0], "image": records(IMAGES)}, features)
    index = ImageIndex.open(file)
    assert index.classes == ("a_b", "cat")
    names = [f"train.parquet/{'a_b' if i % 2 else 'cat'}/{i:09d}" for i in range(7)]
    assert read(index) == dict(zip(names, IMAGES, strict=True))


@pytest.mark.parametrize("cached", [True, False])
def test_bytes_without_metadata_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """A row group is read once if there is a cache, otherwise for each image."""
    monkeypatch.setenv(SIZE_VARIABLE, "1" if cached else "0")
    index = ImageIndex.open(write(tmp_path / "a.parquet", {"id": range(7), "jpg": IMAGES}))
    groups: list[int] = []
    unpack = module.ParquetImage._unpack
    monkeypatch.setattr(
        module.ParquetImage,
        "_unpack",
        lambda image: (groups.append(image.group), unpack(image))[1],  # type: ignore[func-returns-value]
    )
    for _ in range(2):
        assert read(index) == {f"a.parquet/{i:09d}": image for i, image in enumerate(IMAGES)}
    assert groups == ([0, 1, 2] if cached else [0, 0, 0, 1, 1, 1, 2] * 2)


def test_a_row_without_bytes_is_unreadable(tmp_path: Path) -> None:
    index = ImageIndex.open(
        write(
            tmp_path / "a.parquet",
            {"image": pa.array([{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"1", "path": ""}])},
        )
    )
    with pytest.raises(OSError, match="its row has no bytes of an image"):
        index.file(0).read()  # type: ignore[union-attr]
    assert index.file(1).read() == b"1"  # type: ignore[union-attr]


def test_a_changed_file_is_not_read_from_the_cache(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": records([b"old"])})
    assert [*read(ImageIndex.open(file)).values()] == [b"old"]
    write(file, {"image": records([b"newer"])})
    assert [*read(ImageIndex.open(file)).values()] == [b"newer"]


def test_a_file_without_images_or_no_parquet_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"], "image": ["https://host/1.jpg"]})
    with pytest.raises(ValueError, match=r"has no column of encoded images \(its columns: text, image\); name the"):
        ImageIndex.open(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"cannot read .*b\.parquet as Parquet: .*; fetch it again, or take it out"):
        ImageIndex.open(tmp_path / "b.parquet")


def test_damage_behind_the_footer_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": IMAGES, "label": ["a", "b", "a", "b", "a", "b", "a"]})
    content = bytearray(file.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = bytes(len(content) - footer - 4)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet as Parquet: .*; fetch it again, or take it out"):
        ImageIndex.open(file)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"1"]), pa.array([b"2"])], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has several columns of one name \(image, image\); rename them"):
        ImageIndex.open(tmp_path / "a.parquet")


@pytest.mark.parametrize("features", [[1, 2], {"image": 3}, None])
def test_metadata_of_any_form_is_passed_over(tmp_path: Path, features: Any) -> None:
    file = write(tmp_path / "a.parquet", {"image": [b"1"]}, {} if features is None else features)
    assert [*read(ImageIndex.open(file)).values()] == [b"1"]
