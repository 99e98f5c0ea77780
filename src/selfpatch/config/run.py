"""Settings of a run: a recipe is laid over the defaults, options are laid over the recipe."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import NonNegativeFloat, PositiveInt

from selfpatch.config import sections
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.schema import DataName, Name, Seed, close_match, override, plain, settings, unknown_name

FROM_INIT = "init"
"""Value of `model` for the architecture of the weights of `init`."""

PLAIN_VITS = {"vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"}
"""Models that differ in their sizes only."""

NO_METHOD = "none"
"""Value of `method` for patch-level objectives alone."""

NO_OBJECTIVE = "none"
"""Value of `objective` for a method alone."""

COMPOSITION = frozenset({"method", "objective"})
"""Settings that say what a run learns."""

SAMPLES = "samples"
"""Value of `data` that stands for the built-in sample photographs."""

LENGTHS = ("epochs", "minutes")
"""Settings of the length of the training."""

LEGACY_DEFAULTS = {"loader": {"render": "plain"}, "packing": "never"}
"""Defaults of runs older than the setting."""


@settings
class RunConfig:
    """Everything that decides a run.

    `components` holds the settings of methods and objectives by name, which are fields of their `Config`: in a recipe
    `selfpatch: {k: 2}`, as an option `--selfpatch.k 2`.
    """

    data: DataName = SAMPLES
    """Folder of images and uncompressed .tar shards (any nesting), one shard, zip archive or Parquet file, a text file
    that lists any of these, a URL of one, or `samples` for the built-in photographs."""
    out: Name | None = None
    """Run directory, new or empty; if not given, runs/<data>-<method>-<objective>."""
    channels: PositiveInt = 3
    """Number of channels of the images. 3 reads any file as RGB; any other number must match the files, whose mean and
    deviation are measured at the start."""
    recipe: Name | None = None
    """Name of a built-in recipe, or path of a YAML file; if not given, chosen by the number of images."""
    method: Name = "dino"
    """Image-level method: dino, ibot, moco_v2, moco_v3, moby, swav, densecl, or `none` for patch objectives alone."""
    objective: Name = "selfpatch"
    """Patch-level objective: selfpatch, sere, neco, leopart, koleo, paka, sere_pairs, selfpatch_pairs, gram,
    retain, distill, several joined by `+`, or `none`."""
    model: Name = "vit_small"
    """Architecture: vit_tiny, vit_small, vit_base, vit_large, vit_huge, vit_giant, swin_tiny, swin_small,
    swin_base, resnet50, convnext_tiny, convnext_small, convnext_base, convnext_large, the name of any ViT (also of
    class Eva), Swin, ResNet or ConvNeXt of timm, or `init` for the architecture of those weights."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels; defaults to 16, or to the timm model's."""
    init: Name | None = None
    """Weights to start the backbone from: a run directory, a released checkpoint, a .safetensors file, a folder of
    Hugging Face or timm, timm:NAME, or hf:OWNER/NAME."""
    teacher: Name | None = None
    """Weights of the anchor, a frozen encoder with which `distill`, `gram` and `retain` compare the student; takes the
    same names as `init`. If not given, the anchor is a copy of the initial weights."""
    allow_partial: bool = False
    """Accept `init` weights that leave parts of the backbone as initialised."""
    epochs: Annotated[float, Gt(0), Le(1_000_000)] | None = 300
    """Length of the training in epochs; with `minutes`, its largest length."""
    minutes: Annotated[float, Gt(0), Le(525_600)] | None = None
    """Time of the whole run in minutes, at most a year, with online evaluations. The number of epochs that fits into it
    follows from the speed of the first steps, which are measured before the run begins, and is recorded in config.yaml.
    An option or argument `minutes` replaces a recipe's `epochs`, and the other way round; both together set both
    limits."""
    batch_size: Annotated[int, Gt(0), Le(1_000_000_000)] = 1024
    """Number of images in a step, over all processes and accumulated micro-batches."""
    accumulate: PositiveInt = 1
    """Micro-batches per step. Equivalent to one large batch, except for batch norm and for what compares the images of
    a batch: MoCo-v3's negatives, Sinkhorn-Knopp, KoLeo, references of NeCo, image similarities of distill."""
    seed: Seed = 0
    """Seed of every random draw."""
    device: Name = "auto"
    """Device to train on: `auto` (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; `auto` uses bf16 where the device computes it in hardware."""
    compile: bool = False
    """Run the blocks of a ViT through torch.compile: some minutes at the start, then faster; no gain on a CPU."""
    packing: sections.Packing = "auto"
    """Passes of a ViT for crops of several sizes: one for all of them, whose tokens form one sequence, or one for each
    size. Both give the same numbers up to rounding. `auto` packs in bf16 on a CPU; elsewhere it was not measured."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Training on several processes: each holds the whole network (ddp), or a part of every parameter, gradient and
    optimizer state (fsdp), for a network that does not fit one device."""
    activation_checkpointing: bool = False
    """Recompute the activations inside each of the student's blocks in the backward pass: less memory, about a third
    more computation."""
    loss_weights: Mapping[str, NonNegativeFloat] = dataclasses.field(default_factory=dict)
    """Weight of each loss by name; if not given, what the method or objective declares, else 1."""
    backbone: sections.BackboneOverrides = sections.BackboneOverrides()
    lora: sections.LoraConfig = sections.LoraConfig()
    crops: sections.CropConfig = sections.CropConfig()
    pairs: sections.PairConfig = sections.PairConfig()
    anchor: sections.AnchorConfig = sections.AnchorConfig()
    masks: sections.MaskConfig = sections.MaskConfig()
    optimizer: sections.OptimizerConfig = sections.OptimizerConfig()
    loader: sections.LoaderConfig = sections.LoaderConfig()
    watch: sections.WatchConfig = sections.WatchConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoint: sections.CheckpointConfig = sections.CheckpointConfig()
    components: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without data, model or device."""
        if self.epochs is None and self.minutes is None:
            raise ValueError("neither epochs nor minutes is given; set one of them, e.g. epochs to 100")
        if not self.used:
            raise ValueError("method and objective are both 'none', so that there is nothing to learn; name one")
        if self.objective != NO_OBJECTIVE and {"", NO_OBJECTIVE} & {*self.objective.split("+")}:
            raise ValueError(
                f"objective is {self.objective!r}; join names of objectives by '+', or use {NO_OBJECTIVE!r} alone"
            )
        if len(set(self.used)) < len(self.used):
            raise ValueError(f"objective is {self.objective!r}, which names one twice; name each once")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulate} micro-batches; "
                "let accumulate divide it"
            )
        if self.data == SAMPLES and self.channels != 3:
            raise ValueError(
                f"channels is {self.channels}, but the sample photographs have 3; give your own images with --data"
            )
        if self.channels != 3 and self.loader.render in ("fast", "device"):
            raise ValueError(
                f"loader.render is {self.loader.render!r}, which is for images of 3 channels, but channels is "
                f"{self.channels}; leave it out, or use 'plain'"
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the patch-level objectives."""
        return () if self.objective == NO_OBJECTIVE else tuple(self.objective.split("+"))

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the method and the objectives, whose settings are read."""
        return (*([] if self.method == NO_METHOD else [self.method]), *self.objectives)

    def override(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return this configuration with nested `values` in place of its own; other sections belong to components.

        Values of `epochs` or `minutes` replace both lengths of the training.

        Raises:
            ValueError: a name is unknown, or a value has the wrong type or is out of range.
        """
        values = dict(values)
        if isinstance(values.get("model"), str):
            return self.for_model(values.pop("model")).override(values)
        if any(values.get(name) is not None for name in LENGTHS):
            values = dict.fromkeys(LENGTHS) | values
        known = [field.name for field in dataclasses.fields(self)]
        given = values.pop("components", None) or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"components is no mapping but {given!r}; write it by name, e.g. selfpatch: {{k: 2}}")
        given = {**given, **{name: values.pop(name) for name in list(values) if name not in known}}
        for name, section in given.items():
            if not isinstance(section, Mapping):
                mistake = f"{name} is {section!r}; use a mapping of its settings"
                raise ValueError(mistake if name in self.used else unknown_name(str(name), str(name), known))
        merged = {name: {**self.components.get(name, {}), **section} for name, section in given.items()}
        config = override(self, {**values, "components": merged})
        for name in given:
            if name not in config.used:
                meant = close_match(str(name), [*known, *config.used])
                raise ValueError(
                    f"nothing reads the settings of {name!r}: the run's method and objectives are "
                    f"{', '.join(config.used)}; {f'did you mean {meant!r}? Else ' if meant else ''}leave them out, or "
                    "name it with --method or --objective"
                )
        return config

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], file: Path) -> "RunConfig":
        """Return the configuration that a run directory's config.yaml holds, also if some setting is newer than it.

        Raises:
            ValueError: a name is unknown, or a value has the wrong type or is out of range; the error names the `file`.
        """
        try:
            return cls().override(LEGACY_DEFAULTS).override(settings)
        except ValueError as error:
            raise ValueError(f"the settings in {file} cannot be read: {error}") from None

    def for_model(self, model: str) -> "RunConfig":
        """Return this configuration with another model; settings of the old architecture go, unless both are ViTs."""
        if model == self.model or {model, self.model} <= PLAIN_VITS:
            return dataclasses.replace(self, model=model)
        kept = {name: getattr(self.backbone, name) for name in ("drop_path", "frozen_blocks", "keep_class_token")}
        return dataclasses.replace(self, model=model, patch_size=None, backbone=sections.BackboneOverrides(**kept))

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values, as `config.yaml` holds them and `override` reads them."""
        values: dict[str, Any] = plain(self)
        components = values.pop("components")
        return values | {name: components[name] for name in self.used if name in components}
