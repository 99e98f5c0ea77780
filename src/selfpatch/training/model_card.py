"""Model card of an exported network: what it is, how to load it, and how its run trained and measured it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from selfpatch.checkpoints.export.export import POOL_IS_LEFT_OUT
from selfpatch.checkpoints.hub import hub_name
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.json_schema import check_json
from selfpatch.config.schema import flat
from selfpatch.core.text import visible
from selfpatch.core.text_files import read_json
from selfpatch.core.version import VERSION
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.dataset import DataRecord
from selfpatch.training.history import read_history
from selfpatch.training.loggers.metrics import read_numbers
from selfpatch.training.report import measured

PROJECT = "https://github.com/selfpatch/selfpatch"
FAMILIES = {"vit": "Vision transformer", "swin": "Swin transformer", "resnet": "ResNet", "convnext": "ConvNeXt"}
SETTINGS = (
    "method", "objective", "recipe", "model", "patch_size", "init", "teacher", "epochs", "minutes", "batch_size",
    "crops.global_size", "optimizer.name", "optimizer.base_lr", "seed",
)  # fmt: skip
"""Settings that the card shows at first sight."""
LEFT_OUT = ("out", "device")
"""Settings that tell of the machine alone."""


@dataclass(frozen=True)
class ModelCard:
    """Content of a model card besides the network.

    Attributes:
        repository: name on the Hub, `OWNER/NAME`.
        library: name of the library that loads the files, as the Hub knows it.
        usage: lines of code that load them.
        about: sentences on images and caveats.
        license: identifier of a license, e.g. `apache-2.0`.
        run: the run that trained the network, if it is known.
    """

    repository: str
    library: str
    usage: str
    about: tuple[str, ...]
    license: str | None
    run: RunDirectory | None

    def text(self, encoder: BranchEncoder) -> str:
        """Return README.md. Folders of this machine do not appear in it."""
        settings = {} if self.run is None else public_settings(self.run.settings)
        sections = [
            f"---\n{self._front_matter(settings)}\n---",
            f"# {self.repository.partition('/')[2]}",
            _summary(encoder, settings, has_pool=POOL_IS_LEFT_OUT not in self.about),
            f"## Use\n\n```python\n{self.usage}\n```",
            "\n".join(self.about),
        ]
        if self.run is not None:
            sections += [*_training(self.run, settings), *_measurements(self.run)]
        return "\n\n".join([*sections, f"## License\n\n{self.license or 'Not stated.'}"]) + "\n"

    def _front_matter(self, settings: Mapping[str, Any]) -> str:
        from huggingface_hub import ModelCardData

        tags = ["selfpatch", "self-supervised-learning", "feature-extraction"]
        tags += [name for name in str(settings.get("objective") or "").split("+") if name and name not in tags]
        init = None if self.run is None else self.run.settings.get("init")
        return ModelCardData(
            license=self.license or "unknown",
            library_name=self.library,
            pipeline_tag="image-feature-extraction",
            tags=[*tags, *([settings["method"]] if settings.get("method") else [])],
            base_model=None if init is None else hub_name(init),
        ).to_yaml()


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by flat names, with the last part of each path, and without those of the machine."""
    return {name: _public(value) for name, value in flat(settings).items() if name not in LEFT_OUT}


def _public(value: Any) -> Any:
    if isinstance(value, list):
        return [_public(part) for part in value]
    is_path = isinstance(value, str) and ("/" in value or "\\" in value) and hub_name(value) is None
    return visible(PurePath(value.replace("\\", "/")).name) if is_path else value


def _summary(encoder: BranchEncoder, settings: Mapping[str, Any], *, has_pool: bool) -> str:
    parameters, p = sum(x.numel() for x in (encoder if has_pool else encoder.backbone).parameters()), encoder.patch_size
    pool = ", with the pool that makes its image feature" if has_pool and encoder.pool is not None else ""
    network = f"{FAMILIES[encoder.backbone.config.family]} of {parameters / 1e6:.3g} M parameters{pool}"
    tool = f"[selfpatch]({PROJECT}) {VERSION}"
    if not settings:
        return f"{network}: {encoder.dim} numbers for each patch of {p} x {p} pixels. Exported by {tool}."
    how = " with ".join(str(settings[name]) for name in ("method", "objective") if settings.get(name))
    start = f", from the weights of {settings['init']}" if settings.get("init") else ""
    return (
        f"{network}: {encoder.dim} numbers for each patch of {p} x {p} pixels. Trained without labels by {tool} "
        f"({how}){start}."
    )


def _training(run: RunDirectory, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section on data, settings, steps and software."""
    rows = [(name, settings[name]) for name in SETTINGS if settings.get(name) is not None]
    record = run.path / "data.json"
    if record.is_file():
        rows.insert(0, ("training images", f"{check_json(read_json(record), DataRecord, str(record))['images']:,}"))
    if numbers := read_numbers(run.path):
        rows.append(("steps", f"{numbers[-1]['step']:,}"))
    if history := read_history(run.path):
        rows.append(("device", f"{history[-1]['processes']} x {history[-1]['device']}"))
        rows.append(("software", ", ".join(f"{name} {version}" for name, version in history[-1]["versions"].items())))
    yield "## Training"
    yield _table(("setting", "value"), rows)
    every = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=None)
    yield f"<details><summary>All settings</summary>\n\n```yaml\n{every}```\n\n</details>"


def _measurements(run: RunDirectory) -> Iterator[str]:
    if lines := measured(read_numbers(run.path)):
        yield "## Measured during training"
        yield "In percent. View matching is measured on held-out images of the same source, k-NN on training images."
        yield _table(("", "mean patch colour", "before training", "trained"), lines)


def _table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
