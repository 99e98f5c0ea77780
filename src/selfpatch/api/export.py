"""Export a network for other libraries, and send it to the Hugging Face Hub."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from selfpatch.checkpoints import hub_upload
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.export.export import FORMATS, check_request
from selfpatch.checkpoints.export.export import export as export_encoder
from selfpatch.checkpoints.folders import run_of
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.schema import Size
from selfpatch.core.console import console
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.model_card import ModelCard


@dataclass(frozen=True)
class ExportPreview:
    """Report of a dry run: bytes of each file that would be written, README.txt, and the model card if there is one."""

    files: Mapping[str, int]
    readme: str
    card: str | None

    def __str__(self) -> str:
        listed = (f"{name}: {size:,} bytes" for name, size in self.files.items())
        return "\n".join([*listed, "", self.card or self.readme, "Nothing was kept, and nothing was sent."])


@overload
def export(
    weights: str | Path | BranchEncoder, to: str, out: str | Path, *, dry_run: Literal[True], **options: Any
) -> ExportPreview: ...
@overload
def export(
    weights: str | Path | BranchEncoder, to: str, out: str | Path, *, dry_run: Literal[False] = False, **options: Any
) -> list[Path]: ...
def export(
    weights: str | Path | BranchEncoder,
    to: str,
    out: str | Path,
    *,
    size: Size | None = None,
    debias: int = 0,
    push_to_hub: str | None = None,
    private: bool = False,
    license: str | None = None,
    dry_run: bool = False,
    **load_options: Any,
) -> list[Path] | ExportPreview:
    """Write a network for another library, or as one safetensors file, and check it by loading it there.

    Args:
        weights: an encoder, or weights as `selfpatch.load` takes them, without baselines and `untrained:`.
        to: timm, safetensors, hf (transformers), onnx or torch (torch.export).
        out: folder for the files, new or empty. Its README.txt explains how to load them.
        size: side of the images in pixels, or (height, width) (onnx and torch only); the graph then takes no others.
        debias: number of directions of positions to remove from patch features (onnx and torch of a fixed size only).
        push_to_hub: repository `OWNER/NAME` of the Hugging Face Hub that the folder is sent to, with a model card made
            from the run. The token is the one of `hf auth login` or HF_TOKEN.
        private: let only its owner see the repository, if it is made (push_to_hub only).
        license: identifier of the license that the card states, e.g. `apache-2.0` (push_to_hub only).
        dry_run: write into a temporary folder, check it, and return what it held; send nothing.
        load_options: fields of `checkpoints.config.LoadConfig`, e.g. `side="student"`.

    Returns:
        The files, or the report of a dry run.

    Raises:
        ValueError: weights cannot be read, the format has no such network, or the Hub does not take the files; the
            folder stays then.
    """
    if push_to_hub is None and (private or license is not None):
        raise ValueError("private and license describe a repository of the Hugging Face Hub; give --push-to-hub too")
    check_request(to, Path(out), size, debias)
    if push_to_hub is not None:
        hub_upload.check_repository(push_to_hub)
        if not dry_run:
            hub_upload.require_login(push_to_hub)
    run = None if isinstance(weights, BranchEncoder) else run_of(Path(weights))
    if isinstance(weights, str | Path):
        weights, report = load_encoder(str(weights), LoadConfig(**load_options))
        console.say(str(report))
    encoder = weights

    def card(about: tuple[str, ...]) -> str:
        assert push_to_hub is not None
        on_hub = FORMATS[to].ON_HUB
        usage = on_hub.usage.format(repository=push_to_hub)
        return ModelCard(push_to_hub, on_hub.library, usage, about, license, run).text(encoder)

    options: dict[str, Any] = {"size": size, "debias": debias, "card": None if push_to_hub is None else card}
    if dry_run:
        return _preview(encoder, to, Path(out).name, options)
    files = export_encoder(encoder, to, out, **options)
    if push_to_hub is not None:
        console.say(f"sent to {hub_upload.upload(Path(out), push_to_hub, private=private)}")
    return files


def _preview(encoder: BranchEncoder, to: str, name: str, options: Mapping[str, Any]) -> ExportPreview:
    with tempfile.TemporaryDirectory() as folder:
        files = export_encoder(encoder, to, Path(folder, name or "exported"), **options)
        texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.name.startswith("README")}
        sizes = {path.name: path.stat().st_size for path in files}
    return ExportPreview(sizes, texts["README.txt"].replace(folder, "."), texts.get("README.md"))
