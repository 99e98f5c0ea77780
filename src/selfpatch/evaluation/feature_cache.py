"""Features of frozen encoders on disk, so that the evaluations of one suite encode each image once.

::

    with caching_features(folder, encoder, max_bytes):           around several evaluations
        features = cached(encoder, image, settings, compute)     in a protocol, instead of compute()

A key is a hash of everything that decides features: the encoder (`function_identity`), the pixels and the settings of
the protocol. Other weights, data or settings therefore never meet the features of others. A file is decoded for its
hash only when the process meets it for the first time, or if it was changed since (`LazyImage`). Each entry is one
memory-mapped file, renamed into place once it is complete, so that processes that share a folder may meet. Nothing is
evicted: protocols read all images in turn, in which case the least recently used entry is the next one to be needed.
Once the folder is full, features are computed as without it.

Protocols use this for whole images and centre crops alone. Random crops would fill the disk and never return, and an
encoder that is being trained changes.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.core import distributed
from selfpatch.core.folders import files_below, subfolders, visible_entries
from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import BFloat16Encoder
from selfpatch.evaluation.identity import function_identity
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.models.debiased import DebiasedEncoder
from selfpatch.models.layer_encoder import LayerEncoder

WRAPPERS = (BFloat16Encoder, DebiasedEncoder, LayerEncoder)
"""Encoders around another one, as `.encoder`; their plain attributes say what they change."""


class FeatureCache:
    """Features in the files of a folder.

    Args:
        folder: folder of features, made when the first ones are written. Those of other encoders are removed; what
            else lies there stays.
        encoder: encoder whose features are kept, also those within wrappers.
        max_bytes: largest size of the files. Each of several processes writes its share of that.
    """

    def __init__(self, folder: Path, encoder: Encoder, max_bytes: int) -> None:
        self._digests: dict[tuple[str, int, int], str] = {}  # of pixels, by the stamp of their file
        self._identities: dict[int, tuple[Encoder, str]] = {}  # by id, which is its own while the encoder is kept
        self.folder = folder / hashlib.sha256(self._identity(encoder).encode()).hexdigest()[:16]
        if distributed.is_main_process():
            _remove_features(folder, keep=self.folder)
        distributed.barrier()
        stored = sum(file.stat().st_size for file in files_below(self.folder, (".npy",))) if self.folder.is_dir() else 0
        self._left = (max_bytes - stored) // distributed.world_size()

    def get(
        self, encoder: Encoder, image: np.ndarray | LazyImage, settings: Any, compute: Callable[[], Tensor]
    ) -> Tensor:
        """Return the features that `compute` returns, float32 on the encoder's device, from the disk if they are there.

        Args:
            encoder: encoder that `compute` calls.
            image: pixels of the images, before or after resizing, or a file.
            settings: values that decide the features besides the encoder and the pixels; their `repr` is hashed.
            compute: function that encodes the images.
        """
        key = f"{self._identity(encoder)} {settings!r} {self._digest(image)}"
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing, or cut off by a power cut
            stored = torch.from_numpy(np.load(path, mmap_mode="c"))  # copy-on-write, as tensors have no read-only mode
            return stored.to(encoder.device)
        features = compute()
        self._write(path, features)
        return features

    def _digest(self, image: np.ndarray | LazyImage) -> str:
        if isinstance(image, np.ndarray):
            return _pixel_digest(image)
        stamp = image.stamp()
        if stamp not in self._digests:
            self._digests[stamp] = _pixel_digest(image.pixels)
        return self._digests[stamp]

    def _identity(self, encoder: Encoder) -> str:
        if isinstance(encoder, WRAPPERS):
            plain = {k: v for k, v in vars(encoder).items() if isinstance(v, str | int | float | tuple | None)}
            return f"{type(encoder).__name__} {plain} of {self._identity(encoder.encoder)}"
        if id(encoder) not in self._identities:
            self._identities[id(encoder)] = encoder, function_identity(encoder)
        return self._identities[id(encoder)][1]

    def _write(self, path: Path, features: Tensor) -> None:
        """Write features unless there is no room; an error of the disk ends the writing, not the evaluation."""
        values = features.float().cpu().numpy()
        if values.nbytes > self._left:
            return
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, values)
            os.replace(temporary, path)
            self._left -= path.stat().st_size
        except OSError:
            self._left = 0
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _pixel_digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _remove_features(folder: Path, keep: Path | None = None) -> None:
    """Remove all features in a folder but those in `keep`, whose entries stay, and then the folder if it is empty."""
    for of_encoder in subfolders(folder) if folder.is_dir() else ():
        if re.fullmatch("[0-9a-f]{16}", of_encoder.name):
            for file in visible_entries(of_encoder):
                is_entry = re.fullmatch(r"[0-9a-f]{64}(\.npy|\.\d+\.tmp)", file.name)
                if is_entry and (of_encoder != keep or file.suffix == ".tmp"):  # left by a process that was killed
                    with contextlib.suppress(OSError):
                        file.unlink()
            _remove_if_empty(of_encoder)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


_active: FeatureCache | None = None


@contextlib.contextmanager
def caching_features(folder: Path, encoder: Encoder, max_bytes: int, *, keep: bool = False) -> Iterator[FeatureCache]:
    """Cache features inside in a folder, from which they are removed afterwards unless they are kept.

    A process that is killed leaves the folder, and the next one uses it. Arguments are those of `FeatureCache`.
    """
    global _active
    before, _active = _active, FeatureCache(folder, encoder, max_bytes)
    try:
        yield _active
    finally:
        _active = before
        if not keep and distributed.is_main_process():
            _remove_features(folder)


def cached(
    encoder: Encoder, image: np.ndarray | Tensor | LazyImage, settings: Any, compute: Callable[[], Tensor]
) -> Tensor:
    """Return the features that `compute` returns, from the cache if there is one; arguments as `FeatureCache.get`.

    Without a cache the image is not read, as estimates of a cost have none.
    """
    if _active is None:
        return compute()
    return _active.get(encoder, image.cpu().numpy() if isinstance(image, Tensor) else image, settings, compute)
