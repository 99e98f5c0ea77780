"""What is no checkpoint is told from its first bytes, whatever its name, with the advice that helps."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from selfpatch.checkpoints.file_kinds import checkpoint_kind

TENSORS = {"a": torch.arange(300.0)}


def torch_bytes(zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zip_bytes(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def script_bytes() -> bytes:
    """An archive with the records of TorchScript, which newer versions of torch no longer write without a warning."""
    return zip_bytes({"net/data.pkl": b"", "net/constants.pkl": b"", "net/code/__torch__.py": b"def f(): pass"})


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return file.getvalue()


def array_bytes(write: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    write(file, np.zeros(3))
    return file.getvalue()


OTHERS = {
    "empty": (b"", "it is empty; download or copy it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n", "Git LFS pointer.*`git lfs pull`"),
    "page": (b"<!DOCTYPE html>\n<html></html>\n", "it is a web page; download the file by its direct link"),
    "page with a byte order mark": ("\ufeff\n <html lang='de'>".encode(), "it is a web page"),
    "gzip": (gzip.compress(torch_bytes()), "compressed with gzip; unpack it first"),
    "bzip2": (bz2.compress(torch_bytes()), "compressed with bzip2; unpack it first"),
    "xz": (lzma.compress(torch_bytes()), "compressed with xz; unpack it first"),
    "tar": (tar_bytes(), "it is a tar archive; unpack it first"),
    "zip": (zip_bytes({"weights/dino.pth": b"x"}), r"zip archive of 1 other file, e.g. 'weights/dino.pth'; unpack it"),
    "empty zip": (zip_bytes({}), "zip archive of 0 other files"),
    "npz": (array_bytes(np.savez), "arrays of NumPy"),
    "npy": (array_bytes(np.save), "an array of NumPy"),
    "TorchScript": (script_bytes(), "it is TorchScript.*torch.jit.load"),
    "compressed": (
        zip_bytes({"w/data.pkl": b"x" * 99, "w/data/0": b"\0" * 99}, zipfile.ZIP_DEFLATED),
        "zipped again, with compression",
    ),
    "pickle": (pickle.dumps({"model": np.zeros(3)}), "a pickle of another library.* could run code"),
    "JSON": (b'{"message": "Not Found"}', "it is JSON that begins with"),
    "configuration": (json.dumps({"model_type": "dinov2"}).encode(), "the configuration of a network; give its folder"),
    "text": (b"404: Not Found", "it is text that begins with '404: Not Found'"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "it is a picture"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "HDF5"),
    "noise": (bytes(range(200, 256)), "or a damaged one: it begins with c8 c9 ca"),
    "cut zip": (torch_bytes()[:900], "or a damaged one: its archive does not end as it should after 900 bytes"),
    "huge header": (b"\0\0\0\0\1\0\0\0{}" + b"\0" * 99, "its safetensors header claims 4,294,967,296 bytes"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_other_files_are_named_with_advice(tmp_path: Path, name: str, ending: str) -> None:
    content, message = OTHERS[name]
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"w{ending} is no checkpoint.*{message}") as refused:
        checkpoint_kind(path)
    assert "\n" not in str(refused.value)


def test_checkpoints_are_known_under_any_name(tmp_path: Path) -> None:
    contents = {
        "zip": (torch_bytes(), "torch"),
        "legacy": (torch_bytes(zipped=False), "torch"),
        "safe": (save(TENSORS), "safetensors"),
        "index": (b'\n {"metadata": {}, "weight_map": {"a": "b.safetensors"}}', "index"),
    }
    for name, (content, kind) in contents.items():
        for ending in (".pth", ".safetensors", ".bin", ""):
            path = tmp_path / (name + ending)
            path.write_bytes(content)
            assert checkpoint_kind(path) == kind


def test_a_large_pickle_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {str(i): torch.zeros(1) for i in range(50)}
    torch.save(many, tmp_path / "many.pth")
    (tmp_path / "many.safetensors").write_bytes(save(many))
    monkeypatch.setattr("selfpatch.checkpoints.file_kinds.MAX_HEADER", 1000)
    for name in ("many.pth", "many.safetensors"):
        with pytest.raises(ValueError, match=r"its names and shapes take .* bytes \(at most 1,000 are read\)"):
            checkpoint_kind(tmp_path / name)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(ValueError, match=r"fifo.pth is no regular file"):
        checkpoint_kind(tmp_path / "fifo.pth")


def test_an_onnx_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch" + b"\0" * 30)
    with pytest.raises(ValueError, match="an ONNX graph; give the weights that it was exported from"):
        checkpoint_kind(tmp_path / "model.onnx")
