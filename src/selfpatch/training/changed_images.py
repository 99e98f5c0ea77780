"""Images that have changed since a run began: their stamps are recorded then, and compared when it is resumed."""

from typing import NamedTuple

import numpy as np

from selfpatch.checkpoints.run_dir import RunDirectory, escaped
from selfpatch.config.sections import Fingerprint
from selfpatch.core.atomic_io import replacing, write_atomically
from selfpatch.core.text import counted
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.stamps import MISSING

STAMPS, CHANGED = "images.npz", "changed.txt"
NUM_NAMED = 3
"""Number of changed images that a sentence names."""


class _Recorded(NamedTuple):
    content: bool
    stamps: np.ndarray


def record_images(run: RunDirectory, index: ImageIndex, fingerprint: Fingerprint) -> None:
    """Write the stamps of all images into the run directory, unless nothing is to be recorded."""
    if fingerprint != "none":
        content = fingerprint == "content"
        with replacing(run.path / STAMPS) as file:
            np.savez_compressed(file, content=np.array(content), stamps=index.stamps(content=content))


def changed_images(run: RunDirectory, index: ImageIndex, *, refuse: bool = False) -> str | None:
    """Return a sentence on the images that have changed since the run began, or None; list them in `changed.txt`.

    Args:
        run: the run, whose index still has the same images.
        index: all images.
        refuse: raise the sentence instead.

    Raises:
        ValueError: images have changed, or it cannot be told, and `refuse` is set.
    """
    recorded = _load(run, len(index))
    if recorded is None:
        if refuse:
            raise ValueError(
                f"{run.path} has no readable {STAMPS}, so that changed images cannot be told; resume without "
                "--refuse-changed"
            )
        return None
    now = index.stamps(content=recorded.content)
    changed = np.flatnonzero((now != recorded.stamps).any(1))
    if not len(changed):
        return None
    sizes, before = now[changed, 0], recorded.stamps[changed, 0]
    kinds = np.where(sizes == before, "content" if recorded.content else "time", "size").astype(object)
    kinds[sizes == MISSING] = "missing"
    names = [escaped(index.name(int(i))) for i in changed]
    lines = (f"{name}\t{kind}\n" for name, kind in zip(names, kinds, strict=True))
    write_atomically(run.path / CHANGED, "".join(lines).encode("utf-8", "surrogateescape"))
    counts = ", ".join(f"{(kinds == kind).sum()} {said}" for kind, said in _SAID.items() if (kinds == kind).any())
    examples = ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
    sentence = f"{len(names)} of {counted(len(index), 'image')} changed after {run.path} began ({counts}): {examples}"
    if refuse:
        raise ValueError(f"{sentence}; put them back, or resume without --refuse-changed; {CHANGED} there lists all")
    return f"{sentence}; the run goes on with them, and {CHANGED} there lists all"


_SAID = {
    "missing": "missing",
    "size": "in size",
    "content": "in content",
    "time": "in modification time alone",
}


def _load(run: RunDirectory, count: int) -> _Recorded | None:
    try:
        with np.load(run.path / STAMPS, allow_pickle=False) as stored:
            recorded = _Recorded(bool(stored["content"]), stored["stamps"])
    except Exception:  # not recorded, or damaged, on which NumPy raises nearly anything
        return None
    return recorded if recorded.stamps.shape == (count, 2) and recorded.stamps.dtype == np.int64 else None
