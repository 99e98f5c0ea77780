"""Kind of a file, told from its first bytes whatever its name, and what to do with one that is no checkpoint."""

import zipfile
from pathlib import Path
from typing import Any, Literal

from selfpatch.core.text import counted
from selfpatch.core.text_files import read_json

Kind = Literal["torch", "safetensors", "index"]
"""A file of torch.save, one of safetensors, or Hugging Face's index of several such files."""

MAX_HEADER = 8 << 20
"""Largest header of a safetensors file, and largest pickle of a zip file, in bytes.

They hold names and shapes, some 150 bytes for a tensor. A million of them would take minutes.
"""
MAX_INDEX = 64 << 20
"""Largest JSON file in bytes that is parsed, to tell whether it is an index."""

_HEAD = 512
_TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""Number at the start of files that torch.save wrote before it wrote zip archives."""
_AGAIN = "download or copy it again"
_UNPACK = "unpack it first"

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, which only names the file", "run `git lfs pull` to get the file"),
    (b"\x1f\x8b", "a file compressed with gzip", f"{_UNPACK}, with gunzip or tar -xzf"),
    (b"BZh", "a file compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "a file compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "an array of NumPy", "save named tensors, e.g. with safetensors.numpy.save_file"),
    (b"\x89HDF", "an HDF5 file, e.g. of Keras", "convert it to safetensors with the library that wrote it"),
    (b"GGUF", "a GGUF file", "give the PyTorch weights that it was made from"),
    (b"\x89PNG", "a picture", "name the weights with --weights, and images as data"),
    (b"\xff\xd8\xff", "a picture", "name the weights with --weights, and images as data"),
    (b"%PDF", "a PDF document", "give the file of the weights"),
)
"""First bytes of other files, what such a file is, and what to do."""


def checkpoint_kind(path: Path) -> Kind:
    """Return the kind of a checkpoint file.

    Raises:
        ValueError: the file is something else, empty, or visibly cut off.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; give a checkpoint file or a folder that holds one")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise _refusal(path, "it is empty", _AGAIN)
    if head.startswith(b"PK"):
        return _zip_kind(path, size)
    if head[:1] == b"\x80" and len(head) > 2 and 2 <= head[1] <= 5:
        if _TORCH_MAGIC in head[:32]:
            return "torch"
        advice = "its library can load it; save the tensors by name, as .safetensors"
        raise _refusal(path, "it is a pickle of another library, and unpickling it could run code", advice)
    for start, what, advice in _OTHERS:
        if head.startswith(start):
            raise _refusal(path, f"it is {what}", advice)
    if head[257:262] == b"ustar":
        raise _refusal(path, "it is a tar archive", f"{_UNPACK}, with tar -xf")
    if path.suffix == ".onnx":
        raise _refusal(path, "it is an ONNX graph", "give the weights that it was exported from")
    if head[8:9] == b"{":
        header = int.from_bytes(head[:8], "little")
        if header + 8 <= size:
            _check_header(path, header)
            return "safetensors"
        claimed = f"its safetensors header claims {header:,} bytes, and the whole file has {size:,}"
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {claimed}; {_AGAIN}")
    return _text_kind(path, head, size)


def _refusal(path: Path, what: str, advice: str) -> ValueError:
    return ValueError(f"{path} is no checkpoint: {what}; {advice}")


def _zip_kind(path: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:  # damaged bytes make the reader fail in many ways
        reason = f"its archive does not end as it should after {size:,} bytes"
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {reason}; {_AGAIN}") from None
    names = [record.filename for record in records]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        advice = "load it with torch.jit.load and save the state_dict() of that"
        raise _refusal(path, "it is TorchScript, which holds a program", advice)
    pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
    if not pickles:
        if names and all(name.endswith(".npy") for name in names):
            raise _refusal(path, "it holds arrays of NumPy (.npz)", "save them as .safetensors")
        example = f", e.g. {names[0]!r}" if names else ""
        inside = f"it is a zip archive of {counted(len(names), 'other file')}{example}"
        raise _refusal(path, inside, f"{_UNPACK}, and name the weights in it")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        advice = "unpack it, and zip its files without compression (zip -0)"
        raise _refusal(path, "it was zipped again, with compression", advice)
    _check_header(path, pickles[0].file_size)
    return "torch"


def _check_header(path: Path, size: int) -> None:
    if size > MAX_HEADER:
        what = f"its names and shapes take {size:,} bytes (at most {MAX_HEADER:,} are read)"
        raise _refusal(path, what, "save the state dict of one network alone")


def _text_kind(path: Path, head: bytes, size: int) -> Kind:
    """Return `index`, or raise ValueError on what kind of text or bytes this is."""
    try:
        text = head[: len(head) - 4 * (size > len(head))].decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() and not all(c.isprintable() or c.isspace() for c in text):
        text = ""
    if not text:
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one: it begins with {head[:8].hex(' ')}; "
            "give a file that torch.save or safetensors wrote"
        )
    if text.startswith("<"):
        advice = "download the file by its direct link, signed in if it needs that"
        raise _refusal(path, "it is a web page", advice)
    if text[0] in "{[":
        content = small_json(path)
        if isinstance(content, dict) and "weight_map" in content:
            return "index"
        if isinstance(content, dict) and content.keys() & {"architectures", "model_type", "architecture"}:
            raise _refusal(path, "it is the configuration of a network", f"give its folder, {path.parent}")
        raise _refusal(path, f"it is JSON that begins with {text[:40]!r}", "give the file of the weights")
    raise _refusal(
        path, f"it is text that begins with {text[:40]!r}", "give a file that torch.save or safetensors wrote"
    )


def small_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is none or too large."""
    try:
        return read_json(path, max_bytes=MAX_INDEX)
    except ValueError:
        return None
