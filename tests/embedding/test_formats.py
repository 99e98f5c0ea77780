"""Every format holds the same numbers and names, as other libraries read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from selfpatch.embedding import formats
from selfpatch.embedding.formats import FORMATS, Array, FeatureTable, writer_of
from selfpatch.embedding.read import read_embeddings

NAMES = ["a/b.jpg", "\u00e9t\u00e9.png", "", "\U0001f600.jpg", "last"]
RNG = np.random.default_rng(0)
VALUES = {
    "size": RNG.integers(1, 900, (5, 2)).astype(np.int32),
    "image": RNG.standard_normal((5, 6)).astype(np.float16),
    "patches": RNG.integers(-127, 128, (5, 2, 3, 6)).astype(np.int8),
    "patches_scale": RNG.random((5, 2, 3)).astype(np.float32),
}


@pytest.fixture(params=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of five rows in chunks of two."""
    for package in {".parquet": ["pyarrow"], ".zarr": ["zarr"]}.get(request.param, ()):
        pytest.importorskip(package)
    monkeypatch.setattr(formats, "ROWS_AT_ONCE", 2)

    def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
        return (values[first : first + 2] for first in (0, 2, 4))

    arrays = {name: Array(str(v.dtype), v.shape, lambda v=v: chunks(v)) for name, v in VALUES.items()}
    path = tmp_path / f"features{request.param}"
    writer_of(path)(FeatureTable(arrays, lambda: iter(NAMES), {"weights": "run"}), path)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
    return path


def test_other_libraries_read_it(file: Path) -> None:
    if file.suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(file)
        assert table.column("name").to_pylist() == NAMES
        assert table.schema.metadata[b"weights"] == b"run"
        assert table.schema.metadata[b"patches_shape"] == b"[2, 3, 6]"
        read = {name: np.array(table.column(name).to_pylist()).reshape(VALUES[name].shape) for name in [*VALUES][1:]}
        read["size"] = np.stack([table.column(name).to_numpy() for name in ("width", "height")], 1)
    elif file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as stored:
            read = dict(stored)
        assert read["names"].tolist() == NAMES
    else:
        if file.suffix == ".zarr":
            import zarr

            group = zarr.open_group(file, mode="r")
            read, metadata = {name: array[...] for name, array in group.arrays()}, dict(group.attrs)
        else:
            read = load_file(file)
            with safe_open(file, "np") as opened:
                metadata = opened.metadata()
        assert metadata == {"weights": "run"}
        text, ends = read["names"].tobytes(), read["name_ends"].tolist()
        assert [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)] == NAMES
    for name, values in VALUES.items():
        np.testing.assert_array_equal(read[name], values)


def test_ours_reads_it(file: Path) -> None:
    if file.suffix in (".parquet", ".zarr"):
        with pytest.raises(ValueError, match="is no safetensors or npz file; read Parquet with pandas"):
            read_embeddings(file)
        return
    embeddings = read_embeddings(file)
    assert (embeddings.names, embeddings.metadata) == (NAMES, {"weights": "run"})
    np.testing.assert_array_equal(embeddings.vectors("image"), VALUES["image"].astype(np.float32))
    rows = np.array([4, 1])
    wanted = VALUES["patches"][rows] * VALUES["patches_scale"][rows][..., None]
    np.testing.assert_allclose(embeddings.vectors("patches", rows), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="the file has no 'cls'; it holds image, patches"):
        embeddings.vectors("cls")


def test_names_that_are_no_file_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"name a file that ends with one of: .safetensors, .npz, .parquet, .zarr"):
        writer_of(tmp_path / "features.h5")
    (tmp_path / "a.npz").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.npz exists; remove it, or name another --out"):
        writer_of(tmp_path / "a.npz")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.zarr files need zarr; install it with `pip install 'selfpatch\[embed\]'`"):
        writer_of(tmp_path / "a.zarr")
