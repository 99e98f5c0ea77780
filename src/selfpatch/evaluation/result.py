"""What every evaluation returns: numbers, a table of rows, and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.machine import current_versions
from selfpatch.core.types import Encoder

Cell = str | int | float
Progress = Callable[[str, int, int], None]
"""How an evaluation tells how far it is: called with (what it works on, done, total)."""


@dataclass(frozen=True)
class Provenance:
    """Which weights were measured."""

    source: str
    """As the user named them: a run directory, a file, or timm:NAME."""
    sha256: str | None = None
    """Of the file, or of the tensors (`network_sha256`) where the weights are no single file; None: no network."""


def network_sha256(network: nn.Module) -> str:
    """A hash of a network's parameters and buffers: of their names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


@torch.no_grad()
def encoder_identity(encoder: Encoder) -> str:
    """A hash of what an encoder computes, so that nothing trained on one function is used with another.

    Of a network: its tensors (`network_sha256`), and what else decides its features: the mean and deviation that images
    are normalised by, and whether patches are normed. Of anything else: its type, and its features of a fixed image of
    noise, 4 x 4 patches; how they are rounded depends on the device.
    """
    digest = hashlib.sha256(f"{type(encoder).__name__} {list(encoder.mean)} {list(encoder.std)}\n".encode())
    if isinstance(encoder, nn.Module):
        digest.update(f"{getattr(encoder, 'normed_patches', None)} {network_sha256(encoder)}".encode())
        return digest.hexdigest()
    shape = (1, len(encoder.mean), 4 * encoder.patch_size, 4 * encoder.patch_size)
    probe = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    digest.update(f"{encoder.patch_size}\n".encode())
    for features in (encoder.patches(probe), encoder.image(probe)):
        digest.update(f"{list(features.shape)}\n".encode())
        digest.update(features.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        name: of the evaluation, e.g. `davis`.
        metrics: the numbers to quote, by the names their field uses.
        rows: one mapping a line of the table, all with the same columns: a sequence's object, a class, a k.
        settings: every value that decides the numbers, so that they can be made again.
        weights: what was measured; None for scores of ready-made results and for baselines.
        versions: of the software.
        pictures: paths of the pictures that were written, relative to the result's folder.
        per_image: by the name of an image or a sequence, its own values of metrics; what `compare` draws intervals
            from.
        notes: sentences that a reader of the numbers should know, e.g. which images could not be read.
        device: the name of what computed it, as `device_name` gives it.
        costs: what it took by its unit, `seconds` or `frames/s`. They are no part of the outcome: two results are equal
            whatever they took, and wherever.
    """

    name: str
    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Cell]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Provenance | None = None
    versions: Mapping[str, str] = field(default_factory=current_versions)
    pictures: Sequence[str] = ()
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=list)
    device: str | None = field(default=None, compare=False)
    costs: Mapping[str, float] = field(default_factory=dict, compare=False)

    def save(self, path: str | Path) -> None:
        """Writes JSON; a reader finds the old file or the new one, never half of one."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads what `save` wrote.

        Raises:
            ValueError: there is no such file, or it holds no result.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            weights = values.pop("weights")
            return cls(**values, weights=None if weights is None else Provenance(**weights))
        except FileNotFoundError:
            raise ValueError(f"no result at {path}; give the path of a result.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} holds no result; give a result.json that an evaluation wrote") from None

    def table(self) -> Table:
        """For the terminal: the rows, then the metrics, the costs and the notes as a caption; where there are no
        rows the metrics are the rows.
        """
        metrics = "   ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        costs = "   ".join(f"{value:.4g} {unit}" for unit, value in self.costs.items())
        rows = self.rows or [{"metric": name, "value": value} for name, value in self.metrics.items()]
        caption = "\n".join(line for line in (metrics if self.rows else "", costs, *self.notes) if line)
        table = Table(title=self.name, caption=escape(caption) or None)
        for column in rows[0] if rows else ():
            table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
        for row in rows:
            table.add_row(*[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()])
        return table
