"""Base class of every evaluation's settings: presets, variants, and what a result records.

A module that defines such settings imports nothing heavy, so that the command line can list them at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Gt
from pydantic import PositiveInt

from selfpatch.config.debiasing import DebiasingConfig
from selfpatch.config.schema import override, recorded, settings

MAX_WIDTH = 80
"""Largest number of characters of a line of a table of presets."""
Precision = Literal["float32", "bf16"]
"""Precision of a forward pass; bf16 uses autocast, with float32 parameters."""


@settings
class EvaluationConfig:
    """Base class of an evaluation's settings.

    Attributes:
        presets: settings of published protocols by name, which override the defaults; requires a field `preset`.
        variants: name of the setting that chooses which other settings there are, and the class of each of its values.
        data_help: help text of `--data`.
        baselines: names that may stand in place of weights for baselines that need no encoder.
        network_settings: recorded settings that `compare` lets differ, because they describe the network.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    variants: "ClassVar[tuple[str, Mapping[str, type[EvaluationConfig]]] | None]" = None
    data_help: ClassVar[str] = "Folder of the data set."
    baselines: ClassVar[tuple[str, ...]] = ()
    network_settings: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs_encoder(self) -> bool:
        """True if the evaluation encodes images; False if it scores ready-made results."""
        return True

    @classmethod
    def from_settings(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Return the settings of the variant and the preset that `values` name, overridden by the rest of `values`.

        Args:
            values: settings by name, as YAML or Python gives them.
            where: prefix of names in errors, e.g. `davis`.

        Raises:
            ValueError: a name is unknown, or a value has the wrong type or is out of range.
        """
        return override(cls.with_choices(values, where), values, where)

    @classmethod
    def with_choices(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Return the settings of the variant and the preset that `values` name, ignoring the rest of `values`.

        Raises:
            ValueError: there is no such variant or preset.
        """
        chosen = cls.variant(values)
        preset = values.get("preset", getattr(chosen, "preset", None))
        if chosen.presets and (not isinstance(preset, str) or preset not in chosen.presets):
            raise ValueError(f"{f'{where}.preset'.lstrip('.')} is {preset!r}; use one of: {', '.join(chosen.presets)}")
        return chosen(**({"preset": preset} if chosen.presets else {}))  # type: ignore[return-value]

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> "type[EvaluationConfig]":
        """Return the class of the variant that `values` name, or this class if there are no variants."""
        if cls.variants is None:
            return cls
        name, classes = cls.variants
        value = values.get(name, getattr(cls, name, next(iter(classes))))
        if not isinstance(value, str) or value not in classes:
            raise ValueError(f"{name} is {value!r}; use one of: {', '.join(classes)}")
        return classes[value]

    def recorded(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, see `config.schema.recorded`."""
        return recorded(self)


@settings
class LimitConfig(EvaluationConfig):
    """Base class of evaluations that may use a part of the images, for a quick look; `data.images.limited` chooses it.

    Evaluations of something else than single images declare the field again, to say of what.
    """

    limit: PositiveInt | None = None
    """Number of images per split, evenly spread; defaults to all."""


@settings
class FrozenConfig(EvaluationConfig):
    """Base class of evaluations that read the features of a frozen encoder."""

    precision: Precision = "float32"
    """Precision of the encoder; bf16 uses autocast, and features are float32."""


@settings
class DenseConfig(DebiasingConfig, FrozenConfig):
    """Base class of evaluations that read patch features of a frozen encoder."""

    network_settings: ClassVar[frozenset[str]] = frozenset({"debias"})


@settings
class LayerConfig(DenseConfig):
    """Base class of evaluations that read the patch features of one layer.

    `models.layer_encoder.LayerEncoder` takes these settings.
    """

    network_settings: ClassVar[frozenset[str]] = DenseConfig.network_settings | {
        "patch_size", "block", "stage", "stride", "output_stride", "dilate",
    }  # fmt: skip

    block: Annotated[int, Gt(0)] | None = None
    """Block of a ViT to take features from, counted from 1; the last if not given. Tokens of an earlier block are
    before any norm."""
    stage: Annotated[int, Gt(0)] | None = None
    """Number of the stage of a Swin, ResNet or ConvNeXt to take features from, counted from 1; the last if not
    given."""
    output_stride: Literal[8, 16] | None = None
    """Largest stride of a ResNet, in pixels: 16 removes the stride of its last stage, 8 of its last two."""
    dilate: bool = True
    """Dilate the kernels of stages that lose their stride to output_stride, which keeps their receptive field."""

    def layer(self) -> dict[str, Any]:
        """Return the settings that choose the layer, by the names of `LayerEncoder`'s arguments."""
        return {name: getattr(self, name) for name in ("block", "stage", "output_stride", "dilate")}

    def __post_init__(self) -> None:
        if not self.dilate and self.output_stride is None:
            raise ValueError("dilate is False, but no stage loses its stride; give output_stride 8 or 16 too")


def preset_tables(config: type[EvaluationConfig], name: str, chosen: Mapping[str, Any] | None = None) -> str:
    """Return how the presets of an evaluation differ: those of the variant that `chosen` names, or of each.

    Raises:
        ValueError: the evaluation or the variant has no presets, or there is no such variant.
    """
    variants: Mapping[str, type[EvaluationConfig]] = {"": config} if config.variants is None else config.variants[1]
    if config.variants is not None and chosen and config.variants[0] in chosen:
        config.variant(chosen)  # refuses an unknown one
        variant = chosen[config.variants[0]]
        name, variants = f"{name} --{config.variants[0]} {variant}", {variant: variants[variant]}
    tables = []
    for variant, cls in variants.items():
        if cls.presets:
            table = describe_presets({preset: cls.from_settings({"preset": preset}) for preset in cls.presets})
            tables.append(f"{variant}\n{table}".lstrip("\n"))
    if not tables:
        raise ValueError(f"{name} has no presets; its defaults are the published protocol")
    return "\n\n".join(tables)


def describe_presets(presets: Mapping[str, Any]) -> str:
    """Return a table with a column for each preset and a line for each setting in which they differ.

    Columns that do not fit into `MAX_WIDTH` characters follow below, with the names of the settings again.
    """
    columns = {name: asdict(preset) for name, preset in presets.items()}
    rows = [["", *columns]]
    for setting in [name for name in next(iter(columns.values())) if name != "preset"]:
        cells = [_cell(column[setting]) for column in columns.values()]
        if len(set(cells)) > 1:
            rows.append([setting, *cells])
    names, *others = zip(*rows, strict=True)
    blocks = [[names]]
    for column in others:
        if len(blocks[-1]) > 1 and sum(2 + _width(one) for one in [*blocks[-1], column]) - 2 > MAX_WIDTH:
            blocks.append([names])
        blocks[-1].append(column)
    return "\n\n".join(map(_aligned, blocks))


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    widths = [_width(column) for column in columns]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, tuple):
        return str(value)
    cells = [_cell(part) for part in value]
    return " ".join(cells) if len(cells) < 4 else f"{cells[0]} {cells[1]} ... {cells[-1]}"
