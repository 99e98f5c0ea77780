"""The settings of a run: frozen dataclasses, a recipe laid over their defaults, options laid over the recipe.

Nothing heavy is imported here, so that `selfpatch pretrain --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from selfpatch.config.parsing import field_types, override_fields, plain_values, unknown_key
from selfpatch.config.validation import check_ranges

FROM_INIT = "init"
"""The value of `model` that stands for the architecture of the weights of `init`."""


PLAIN_VITS = {"vit_tiny", "vit_small", "vit_base", "vit_large"}
"""Models that differ in their sizes alone."""


SAMPLES = "samples"
"""The value of `--data` that stands for the built-in sample photographs."""


@dataclass(frozen=True)
class BackboneOverrides:
    """What the model's name leaves open. None: the model's own."""

    embed_dim: int | None = None
    """Width; of a Swin's first stage, or of a ResNet's first bottlenecks."""
    depth: int | None = None
    """Blocks of a ViT."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage of a Swin or a ResNet."""
    num_heads: int | None = None
    """Attention heads; of a Swin's first stage."""
    drop_path: float = 0.1
    """Student only; the teacher drops nothing."""
    position_embedding: Literal["released", "size"] | None = None
    """How position embeddings are interpolated to another grid: as the released code of DINO does, or by the size, with
    antialias. None: `released`, or what the weights or timm's model were trained with."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embeddings of a ViT that are trained, or fixed sines and cosines (MoCo-v3)."""
    freeze_patch_embed: bool = False
    """Keep the patch projection as initialised (MoCo-v3), or as `init` has it."""
    frozen_blocks: int = 0
    """Keep the embedding and the first so many blocks as they are; 0: train all."""
    keep_class_token: bool = False
    """Keep a ViT's CLS token although a pool makes the image token, for weights that were trained with one."""


@dataclass(frozen=True)
class MaskConfig:
    """Masks of the student's global crops, where a method asks for them (iBOT, arXiv 2111.07832)."""

    kind: Literal["block", "random"] = "block"
    ratio: tuple[float, float] = (0.1, 0.5)
    """Share of the patches that is hidden."""
    share_unmasked: float = 0.5
    """Probability that a crop is not masked at all."""


@dataclass(frozen=True)
class CropConfig:
    """Multi-crop and its augmentation (DINO, arXiv 2104.14294, appendix; SelfPatch uses the same)."""

    global_size: int = 224
    global_scale: tuple[float, float] = (0.25, 1.0)
    """Area of a global crop as a share of the image's."""
    num_local: int = 8
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.25)
    flip: float = 0.5
    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of blur in global crop 1, in global crop 2, in each local crop."""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, in pixels of the crop."""
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability of solarization in global crop 1, in global crop 2, in each local crop."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and the schedules; by default those of DINO's released code."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    momentum: float = 0.9
    """Of SGD and LARS."""
    base_lr: float = 5e-4
    """Learning rate for a batch of 256; the peak is base_lr * batch / 256."""
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    weight_decay_on: Literal["matrices", "matrices_but_positions", "matrices_and_biases", "all"] = "matrices"
    """Which parameters decay: those of two dimensions or more (DINO, SelfPatch), of these not the positions (MoBY),
    biases too (SERE's code), or every one (MoCo)."""
    layer_decay: float = 1.0
    """Factor on the learning rate of each layer of the backbone against that of the next one; 1 changes nothing."""
    clip: float = 3.0
    """Largest gradient norm; 0 clips nothing."""
    clip_mode: Literal["tensor", "global"] = "tensor"
    """Clip each parameter tensor by itself, as the released code does, or all of them together."""
    freeze_last_layer_epochs: float = 1
    freeze_backbone_epochs: float = 0
    """Train the new heads alone at first, so that their first gradients do not spoil the weights of `init`."""
    teacher_momentum: float = 0.996
    teacher_momentum_end: float = 1.0
    teacher_moves: Literal["after_step", "before_step"] = "after_step"
    """`before_step`, the order of MoCo and MoBY, is computed at the end of the step before, with the next momentum."""
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    teacher_patch_temp: float | None = None
    """Final temperature of a patch loss that has a schedule of its own (iBOT); None: as `teacher_temp`."""
    warmup_teacher_patch_temp: float | None = None
    warmup_teacher_temp_epochs: float = 0


@dataclass(frozen=True)
class DataConfig:
    workers: int | None = None
    """Loader processes of each training process; None: one fewer than its share of the cores. Samples do not depend on
    it."""
    render: Literal["auto", "plain", "fast", "device"] = "auto"
    """What makes pixels of drawn crops: Pillow, OpenCV (`pip install 'selfpatch[fast]'`), or the device that trains, so
    that workers only decode. auto: device on CUDA, else fast where OpenCV is installed. What is drawn is the same for
    all, and pixels differ by less than a level in the mean."""
    max_pixels: int = 1_000_000
    """Larger images are shrunk to so many pixels before they go to a device that renders, which bounds memory; 0: none
    is."""
    max_bad: float = 0.01
    """The run stops when more than this share of the images that were read are unreadable."""
    held_out: int = 32
    """Images kept out of training to measure on (at most a tenth of the data); 0 measures on none."""


@dataclass(frozen=True)
class WatchConfig:
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: float = 1
    """Epochs between two rounds of dense meter, k-NN and picture sheet; 0: only at the end."""
    knn_images: int = 1000
    """Images of the labelled folder that the k-NN meter uses at most; 0 turns it off."""
    picture_images: int = 6


@dataclass(frozen=True)
class CheckpointConfig:
    every_minutes: float = 5
    every_steps: int = 0
    """Also after every so many steps; 0: by time only."""
    keep: int = 2
    """Most recent checkpoints that are kept."""
    keep_every_epochs: int = 0
    """Checkpoints of every so many epochs are kept for good; 0: none."""
    max_nonfinite: int = 5
    """Stop after this many steps in a row with a loss or gradient that is not finite."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. `components` holds the settings of methods and objectives by name: the keyword
    arguments of their constructors, written `--selfpatch.k 2` or, in a recipe, `selfpatch: {k: 2}`."""

    data: str = SAMPLES
    """Folder of images and uncompressed .tar shards (any nesting), one shard, a text file that names images, folders
    and shards, or `samples`: the built-in photographs."""
    out: str | None = None
    """Run directory; None: runs/<data>-<method>-<objective>. One that has files in it is refused."""
    channels: int = 3
    """Channels of the images. 3: red, green and blue, whatever the files hold; any other number must be what they hold,
    and is normalised by its own mean and deviation, measured at the start."""
    recipe: str | None = None
    """Name of a built-in recipe or path of a YAML file; None: chosen by the number of images."""
    method: str = "dino"
    objective: str = "selfpatch"
    """Patch-level objective, several joined by `+`, or `none`."""
    model: str = "vit_small"
    """vit_tiny, vit_small, vit_base, vit_large, swin_tiny, swin_small, swin_base, resnet50, the name of any ViT, Swin
    or ResNet of timm, or `init`: as the weights of `init` are."""
    patch_size: int | None = None
    """Side of a patch in pixels; None: 16, or what the timm name says."""
    init: str | None = None
    """Weights to start the backbone from: a run directory, a released checkpoint, a .safetensors file or timm:NAME."""
    allow_partial: bool = False
    """Accept `init` weights that leave parts of the backbone as initialised."""
    epochs: float = 300
    batch_size: int = 1024
    """Images a step, over all processes and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches a step, for a batch that does not fit into memory; the result is that of the whole batch, but for
    what looks at a batch as such: batch norms, and the negatives of MoCo-v3, are those of a micro-batch."""
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    """Run the blocks of a ViT through torch.compile: some minutes at the start, then faster on CUDA; of no use on a
    CPU."""
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each loss by name; 1 where not given, except the defaults that the objectives state."""
    backbone: BackboneOverrides = BackboneOverrides()
    crops: CropConfig = CropConfig()
    masks: MaskConfig = MaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loader: DataConfig = DataConfig()
    watch: WatchConfig = WatchConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    components: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(name for name in self.objective.split("+") if name not in ("", "none"))

    @property
    def used(self) -> tuple[str, ...]:
        """The method and the objectives, whose settings are read."""
        return (self.method, *self.objectives)

    def override(self, values: Mapping[str, Any]) -> RunConfig:
        """This configuration with nested `values` laid over it; a section that is no field of a run belongs to a
        component.

        Raises:
            ValueError: an unknown key, or a value of the wrong type.
        """
        components = {name: dict(settings) for name, settings in self.components.items()}
        values = dict(values)
        if isinstance(values.get("model"), str):
            return self.for_model(values["model"]).override({k: v for k, v in values.items() if k != "model"})
        sections = dict(values.pop("components", None) or {}) if _holds_mappings(values.get("components")) else None
        if sections is None:
            raise ValueError("components is no mapping of settings by the component's name; write --selfpatch.k 2, say")
        for name in [k for k in values if k not in field_types(RunConfig)]:
            if not isinstance(values[name], Mapping) and name in self.used:
                raise ValueError(f"{name} is {values[name]!r}; a mapping of its settings is needed")
            if not isinstance(values[name], Mapping):
                raise ValueError(unknown_key(name, field_types(RunConfig), "a run's setting"))
            sections[name] = values.pop(name)
        for name, settings in sections.items():
            components.setdefault(name, {}).update(settings)
        config = dataclasses.replace(override_fields(self, values, "run"), components=components)
        for name in sections:
            if name not in config.used:
                raise ValueError(
                    f"nothing reads the settings of {name!r}: the run's method and objectives are "
                    f"{', '.join(config.used)}; leave them out, or name it with --method or --objective"
                )
        return config

    def for_model(self, model: str) -> RunConfig:
        """With another model; what describes the architecture goes with the old one, unless both are plain ViTs."""
        if model == self.model or {model, self.model} <= PLAIN_VITS:
            return dataclasses.replace(self, model=model)
        kept = {name: getattr(self.backbone, name) for name in ("drop_path", "frozen_blocks", "keep_class_token")}
        return dataclasses.replace(self, model=model, patch_size=None, backbone=BackboneOverrides(**kept))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as `config.yaml` holds them and `override` reads them."""
        plain = plain_values(dataclasses.asdict(self))
        components = plain.pop("components")
        return plain | {name: components[name] for name in self.used if name in components}

    def validate(self) -> RunConfig:
        """Checks what can be checked without data, model or device.

        Raises:
            ValueError: one sentence that names the setting, what was got and what is allowed.
        """
        check_ranges(self)
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
        for name, scale in [("global_scale", self.crops.global_scale), ("local_scale", self.crops.local_scale)]:
            if not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f"crops.{name} is {list(scale)}; use [low, high] with 0 < low <= high <= 1")
        if self.masks.ratio[0] > self.masks.ratio[1]:
            raise ValueError(f"masks.ratio is {list(self.masks.ratio)}; use [low, high] with 0 <= low <= high <= 1")
        return self


def _holds_mappings(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()))
