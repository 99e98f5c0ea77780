"""Checkpoints that all processes write together, by torch.distributed.checkpoint (DCP): a folder each.

shard-00001-model-00001-of-00001.safetensors   tensors of the first process, or its parts of them; and so on
checkpoint.json                                everything else, and the size of each file

No file is a pickle: DCP's own index is one, and so are its values other than tensors, so that its writer and reader of
safetensors are used here, in which each part of a tensor stands with its offsets. The folder is written under another
name and renamed once the files of all processes are complete and on disk.
"""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfpatch.core.atomic_io import clear_error, sync_folder, write_atomically
from selfpatch.core.distributed import is_distributed
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text_files import read_text

DESCRIPTION = "checkpoint.json"
_OFFSETS = "DCP_SHARDING_INFO"
"""Entry of a shard's metadata with the offsets of each part, by DCP's writer."""
_VALUES = "values"
"""Entry of the description: what is no tensor in the optimizer's state, by number of the parameter and name."""


def is_sharded_checkpoint(path: Path) -> bool:
    """Return whether a path is a folder of this kind."""
    return (path / DESCRIPTION).is_file()


def write_sharded(
    state: Mapping[str, Any], path: Path, group: Any, published: Callable[[], object]
) -> "Future[object]":
    """Begin to write a checkpoint, and return what ends once it is complete; all processes call it.

    Tensors are copied before this returns, so that the training may go on.

    Args:
        state: entries of a checkpoint, see `training.checkpointing`; its tensors may be sharded.
        path: the folder to be.
        group: process group of this work alone, over gloo; None for one process.
        published: called by the main process once the checkpoint is there.
    """
    import torch.distributed.checkpoint as dcp

    tensors, description = _split(state)
    writer = _writer(path, description, published)
    with clear_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        pending = dcp.async_save(tensors, storage_writer=writer, process_group=group, no_dist=not is_distributed())
    assert isinstance(pending, Future)
    return pending


def finish_writing(pending: "Future[object]", path: Path) -> None:
    """Wait until a checkpoint is complete.

    Raises:
        OSError: this or another process could not write; earlier checkpoints are as they were.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with clear_error(path):
        try:
            pending.result()
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from None


def temporary(path: Path) -> Path:
    """Return the name under which a checkpoint is written; a kill leaves it behind."""
    return path.with_name(f".{path.name}.tmp")


def remove(path: Path) -> None:
    """Remove a checkpoint, which a kill in between leaves under its temporary name."""
    shutil.rmtree(temporary(path), ignore_errors=True)
    os.replace(path, temporary(path))
    shutil.rmtree(temporary(path), ignore_errors=True)


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint by name, and everything else as JSON takes it."""
    tensors = {f"pretrainer.{name}": tensor for name, tensor in state["pretrainer"].items()}
    values: dict[str, Any] = {}
    for number, of_parameter in state["optimizer"]["state"].items():
        for name, value in of_parameter.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                values.setdefault(str(number), {})[name] = value
    others = {name: value for name, value in state.items() if name not in ("pretrainer", "optimizer")}
    return tensors, {**others, "param_groups": state["optimizer"]["param_groups"], _VALUES: values}


def _writer(path: Path, description: Mapping[str, Any], published: Callable[[], object]) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    class Writer(HuggingFaceStorageWriter):
        """Writes under a temporary name; `finish` runs on the main process once all others have written."""

        def finish(self, metadata: Any, results: list[list[Any]]) -> None:
            names = sorted({result.storage_data.relative_path for part in results for result in part})
            folder = temporary(path)
            present = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
            if missing := [name for name in names if name not in present]:
                raise OSError(
                    errno.ENOENT,
                    f"{missing[0]} of another process is not there; all machines need one file system for --out",
                )
            for name in present.keys() - set(names):  # of an attempt with more processes, which was killed
                (folder / name).unlink()
            files = {name: present[name] for name in names}
            write_atomically(folder / DESCRIPTION, json.dumps({**description, "files": files}))
            if path.exists():
                older = path.with_name(f".{path.name}.old.tmp")
                os.replace(path, older)
                shutil.rmtree(older, ignore_errors=True)
            os.replace(folder, path)
            sync_folder(path.parent)
            published()

    return Writer(str(temporary(path)), save_distributed=True)


def description_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides tensors.

    Raises:
        ValueError: it is incomplete, or another file.
    """
    try:
        content = json.loads(read_text(path / DESCRIPTION))
    except (ValueError, OSError) as error:
        raise ValueError(f"its {DESCRIPTION} cannot be read: {error}") from None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not isinstance(content.get("param_groups"), list):
        raise ValueError(f"its {DESCRIPTION} is of another kind")
    present = {file.name: file.stat().st_size for file in path.glob("*.safetensors")}
    for name in dict.fromkeys([*files, *present]):
        if files.get(name) != present.get(name):
            raise ValueError(f"{name} has {present.get(name, 0)} bytes, and {files.get(name, 0)} were written")
    return content


class ShardedTensors(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name, each put together from its parts when it is read; in a dry run, without values.

    Args:
        path: the checkpoint.
        prefix: only tensors whose names begin with it, and without it.

    Raises:
        ValueError: parts are missing or damaged.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._prefix = prefix
        self._parts: dict[str, list[tuple[Path, list[int], list[int]]]] = {}
        for file in sorted(path.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    offsets = json.loads((opened.metadata() or {}).get(_OFFSETS, "{}"))
                    for name in opened.keys():  # noqa: SIM118
                        if name.startswith(prefix):
                            shape = opened.get_slice(name).get_shape()
                            start = [int(x) for x in offsets[name]["saved_offsets"]]
                            self._parts.setdefault(name.removeprefix(prefix), []).append((file, start, shape))
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file.name} is damaged: {error}") from None
        for name, parts in self._parts.items():
            if math.prod(self.shape(name)) != sum(math.prod(shape) for _, _, shape in parts):
                raise ValueError(f"parts of {name} are missing")

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a whole tensor."""
        ends = ([o + s for o, s in zip(offset, shape, strict=True)] for _, offset, shape in self._parts[name])
        return torch.Size(max(sides) for sides in zip(*ends, strict=True))

    def __getitem__(self, name: str) -> Tensor:
        """Return a whole tensor on the CPU."""
        whole: Tensor | None = None
        for file, offset, shape in self._parts[name]:
            with safe_open(file, "pt") as opened:
                part = opened.get_tensor(self._prefix + name)
            if whole is None:
                whole = torch.empty(self.shape(name), dtype=part.dtype, device="meta" if in_dry_run() else "cpu")
            if not in_dry_run():
                whole[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))] = part
        assert whole is not None
        return whole

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._parts)


def read_sharded(path: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint, of which tensors are read when they are used; the optimizer's are left out.

    Raises:
        ValueError: it is incomplete or damaged, or another file.
    """
    content = description_of(path)
    optimizer = {"state": {}, "param_groups": content.pop("param_groups")}
    others = {name: value for name, value in content.items() if name not in ("files", _VALUES)}
    return {**others, "pretrainer": ShardedTensors(path, "pretrainer."), "optimizer": optimizer}


def load_sharded(path: Path, network: Mapping[str, Tensor], parameters: list[Tensor]) -> dict[str, Any]:
    """Load a checkpoint in place into the tensors of a network, and return the state of its optimizer.

    Each process reads the parts that it needs. All call it.

    Args:
        path: the checkpoint.
        network: tensors of the network by name, sharded or not.
        parameters: parameters in the order of the optimizer, whose moments are sharded like them.

    Raises:
        ValueError: it is damaged, or of another network.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    content, saved = description_of(path), ShardedTensors(path, "optimizer.")
    state: dict[int, dict[str, Any]] = {int(n): dict(values) for n, values in content[_VALUES].items()}
    targets = {f"pretrainer.{name}": tensor for name, tensor in network.items()}
    for key in saved:
        number, _, name = key.partition(".")
        own, shape = parameters[int(number)], saved.shape(key)
        moment = torch.zeros_like(own) if shape == own.shape else torch.zeros(shape)
        targets[f"optimizer.{key}"] = state.setdefault(int(number), {})[name] = moment.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=not is_distributed())
    return {"state": state, "param_groups": content["param_groups"]}
