"""Sections of a run's settings: each is read by one component and declared here once."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Le, MinLen
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, Fraction, Size, Workers, settings

Fingerprint = Literal["size_and_time", "content", "none"]
"""Record of each image, from which a resumed run tells whether it has changed."""
Resampling = Literal["bicubic", "bilinear"]
"""Filter of a resize, antialiased."""
ClipMode = Literal["tensor", "global"]
"""Gradients whose norm is clipped: those of each parameter, or of all together."""
Packing = Literal["auto", "always", "never"]
"""Crops of several sizes in one pass of a backbone."""


@settings
class BackboneOverrides:
    """Architecture settings that the model's name leaves open; those that are not given follow the model."""

    embed_dim: PositiveInt | None = None
    """Width of the tokens (ViT), of the first stage (Swin, ConvNeXt) or of the first bottlenecks (ResNet)."""
    depth: PositiveInt | None = None
    """Number of blocks (ViT only)."""
    depths: Annotated[tuple[PositiveInt, ...], MinLen(1)] | None = None
    """Number of blocks in each stage (Swin, ResNet and ConvNeXt only)."""
    num_heads: PositiveInt | None = None
    """Number of attention heads (ViT), or of the first stage (Swin)."""
    rope: bool | None = None
    """Rotary positions instead of learned ones, as in DINOv3; they fit any grid without interpolation (ViT only)."""
    registers: NonNegativeInt | None = None
    """Number of register tokens, which attend with the patches and are not read (ViT only; arXiv 2309.16588)."""
    layer_scale: bool | None = None
    """Learned scale of each channel of a block's output before it is added, 1e-5 at first, as in DINOv2 (ViT only;
    arXiv 2103.17239)."""
    drop_path: Fraction = 0.1
    """Stochastic depth rate of the student; the teacher drops nothing."""
    position_embedding: Literal["released", "size"] | None = None
    """Interpolation of position embeddings to another grid: as DINO's released code, or by the size with antialiasing.
    Defaults to the pretrained model's, else `released`."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embeddings of a ViT: trained, or fixed sines and cosines (MoCo-v3)."""
    rope_rescale: Annotated[float, Ge(1)] = 1.0
    """Largest factor of the student's rotary coordinates (DINOv3's ViT), drawn log-uniformly from 1 / factor on for
    each block and batch; DINOv3 trains with 2, and 1 draws none."""
    initialisation: Literal["truncated_normal", "xavier"] = "truncated_normal"
    """Initial weights of a ViT's linear layers: normal with a deviation of 0.02 (DINO), or Xavier-uniform (MoCo-v3)."""
    freeze_patch_embed: bool = False
    """Keep the patch projection as initialised, or as `init` has it (MoCo-v3)."""
    frozen_blocks: int = 0
    """Number of first blocks that stay frozen, together with the patch embedding; 0 trains everything. A negative
    number is that of the last blocks that are trained: -3 freezes all others."""
    keep_class_token: bool | None = None
    """Keep a ViT's CLS token although a pool makes the image token. Defaults to true for `init` weights that have one,
    whose patches attend to it, else to false."""

    def architecture(self) -> dict[str, Any]:
        """Return the settings that replace a value of the model's configuration, by name; None keeps the model's."""
        names = ("embed_dim", "depth", "depths", "num_heads", "rope", "registers", "layer_scale")
        return {name: getattr(self, name) for name in names}


@settings
class LoraConfig:
    """Low-rank adapters that are trained in place of the blocks' weights of `init` (LoRA, arXiv 2106.09685).

    The norms from the first block with adapters on are trained too, and so is everything outside the trunk: pool, heads
    and mask token. All other weights stay frozen.
    """

    rank: NonNegativeInt = 0
    """Rank of each layer's update; 0 trains the weights themselves."""
    alpha: PositiveFloat = 16
    """Scale of the updates, which are multiplied by alpha / rank."""
    layers: Annotated[tuple[Literal["qkv", "proj", "fc1", "fc2"], ...], MinLen(1)] = ("qkv", "proj", "fc1", "fc2")
    """Linear layers of a block with adapters: attention's input and output (qkv, proj) and those of the MLP."""
    last_blocks: PositiveInt | None = None
    """Number of last blocks with adapters; defaults to all. Those before are frozen."""


@settings
class MaskConfig:
    """Masks of the student's global crops, where a method asks for them (iBOT, arXiv 2111.07832)."""

    kind: Literal["block", "random"] = "block"
    """Shape of a mask: rectangular blocks of patches, or single random patches."""
    ratio: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Range of the fraction of patches that is hidden."""
    share_unmasked: Fraction = 0.5
    """Fraction of crops that are not masked at all."""
    schedule: Literal["crop", "batch"] = "crop"
    """Draw of these fractions: each `crop` draws its own (iBOT), or the crops of a `batch` of all processes divide the
    range evenly among them, in random order (DINOv2)."""
    smallest_block: PositiveInt | None = None
    """Number of patches of the smallest block that is drawn; DINOv2 has 4. Defaults to a ninth of the grid (iBOT)."""

    def __post_init__(self) -> None:
        """Check that the range is ordered."""
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio is {list(self.ratio)}; use [low, high] with 0 <= low <= high <= 1")


@settings
class GlobalCropConfig:
    """Augmentation of global crops (DINO, arXiv 2104.14294, appendix) but for the settings that each view has."""

    global_scale: tuple[float, float] = (0.25, 1.0)
    """Range of a global crop's area, as a fraction of the image's."""
    resampling: Resampling = "bicubic"
    """Filter that resizes crops: bicubic (DINO), or bilinear (MoCo, MoBY, SwAV, DenseCL); both are antialiased."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: Fraction = 0.8
    """Probability of colour jitter."""
    brightness: NonNegativeFloat = 0.4
    """Largest relative change of brightness in colour jitter."""
    contrast: NonNegativeFloat = 0.4
    """Largest relative change of contrast in colour jitter."""
    saturation: NonNegativeFloat = 0.2
    """Largest relative change of saturation in colour jitter."""
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.1
    """Largest shift of hue in colour jitter, as a fraction of the colour circle."""
    grey: Fraction = 0.2
    """Probability of conversion to grey."""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, in pixels of the crop."""

    def __post_init__(self) -> None:
        """Check that the ranges are ordered."""
        check_scales(global_scale=self.global_scale)
        if not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
            raise ValueError(f"blur_radius is {list(self.blur_radius)}; use [low, high] with 0 <= low <= high")


@settings
class CropConfig(GlobalCropConfig):
    """Multi-crop and its augmentation (DINO, arXiv 2104.14294, appendix; SelfPatch uses the same)."""

    global_size: Size = 224
    """Side of a global crop in pixels, or height and width: 224 448 suits images that are about twice as wide as high.
    Boxes are drawn around the width / height of the crop, so that no shape is squeezed more than a square."""
    num_local: NonNegativeInt = 8
    """Number of local crops of each image; 0 makes none."""
    local_size: Size = 96
    """Side of a local crop in pixels, or height and width."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Range of a local crop's area, as a fraction of the image's."""
    blur: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
    """Probabilities of blur in global crop 1, in global crop 2 and in each local crop."""
    solarize: tuple[Fraction, Fraction, Fraction] = (0.0, 0.2, 0.0)
    """Probabilities of solarization in global crop 1, in global crop 2 and in each local crop."""

    def __post_init__(self) -> None:
        """Check that the ranges are ordered."""
        super().__post_init__()
        check_scales(local_scale=self.local_scale)


@settings
class PairConfig:
    """Pairs of crops for objectives that compare them point by point (PaKA, arXiv 2509.05606).

    The teacher sees clean crops, whose colours are unchanged. The student sees contained crops, each inside a clean
    one, with the augmentation of local crops.
    """

    num_clean: PositiveInt = 2
    """Number of clean crops of each image."""
    clean_size: Size = 224
    """Side of a clean crop in pixels, or height and width."""
    clean_scale: tuple[float, float] = (0.25, 1.0)
    """Range of a clean crop's area, as a fraction of the image's."""
    num_contained: PositiveInt = 8
    """Number of contained crops of each image; crop i lies inside clean crop i modulo num_clean."""
    contained_size: Size = 96
    """Side of a contained crop in pixels, or height and width."""
    contained_scale: tuple[float, float] = (0.05, 0.4)
    """Range of a contained crop's area, as a fraction of the clean crop's."""

    def __post_init__(self) -> None:
        """Check that the ranges are ordered."""
        check_scales(clean_scale=self.clean_scale, contained_scale=self.contained_scale)


@settings
class AnchorConfig:
    """Crops of the frozen encoder that `distill`, `gram` and `retain` compare the student with, and its refreshes.

    It sees the global crops of the student, rendered again if they differ.
    """

    size: Annotated[float, Ge(0.1), Le(10)] = 1.0
    """Side of its crops, as a factor of the global crops' side, rounded to whole patches of the encoder. DINOv3's Gram
    anchoring takes 2."""
    colours: Literal["same", "clean"] = "same"
    """Colours of its crops: the `same` as in the student's, or `clean` without any change (DINOv3's Gram anchoring)."""
    refresh_every: NonNegativeInt = 0
    """Number of steps after which the anchor is replaced by the teacher, again and again; 0 keeps it as it is."""
    max_refreshes: PositiveInt = 3
    """Largest number of times that the anchor is replaced."""


def check_scales(**scales: tuple[float, float]) -> None:
    """Raise ValueError unless each range of areas is ordered, within (0, 1]."""
    for name, (low, high) in scales.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name} is {[low, high]}; use [low, high] with 0 < low <= high <= 1")


@settings
class OptimizerConfig:
    """Optimizer and schedules; defaults follow DINO's released code."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """Optimizer."""
    momentum: Fraction = 0.9
    """Momentum factor (sgd and lars only)."""
    base_lr: NonNegativeFloat = 5e-4
    """Learning rate for a batch of 256 images; the peak is base_lr * batch_size / 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: NonNegativeFloat = 10
    """Length of the linear warm-up of the learning rate, in epochs. In a run so short that the recipe's would take more
    than half of it, it takes its share in the recipe unless you name a length; so do the warm-up of temperatures and
    the frozen epochs."""
    warmup_start_lr: NonNegativeFloat = 0.0
    """Learning rate at the first step of the warm-up."""
    warmup_includes_peak: bool = True
    """Reach the peak rate at the last step of the warm-up (DINO); otherwise the step after it would (MoCo-v3, MoBY)."""
    cosine_over: Literal["steps_after_warmup", "all_steps"] = "steps_after_warmup"
    """Steps that the cosine of the learning rate spans. Under `all_steps` (MoBY) the warm-up replaces its first part,
    so that the rate after the warm-up is below the peak."""
    lr_delay: NonNegativeInt = 0
    """Number of steps by which the learning rate lags behind its schedule; 1 where it is set after a step (MoBY)."""
    update_interval: Literal["step", "epoch"] = "step"
    """Interval at which the learning rate and the weight decay change: at every step, or at every epoch (MoCo-v2,
    DenseCL)."""
    weight_decay: NonNegativeFloat = 0.04
    """Weight decay at the start of its cosine schedule."""
    weight_decay_end: NonNegativeFloat = 0.4
    """Weight decay at the end of its cosine schedule."""
    weight_decay_on: Literal["matrices", "matrices_but_positions", "matrices_and_biases", "all"] = "matrices"
    """Decayed parameters: those of two or more dimensions (DINO, SelfPatch, iBOT, MoBY), the same without CLS token,
    position embeddings and relative position biases, the same with biases (SERE's code), or all (MoCo)."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Layer-wise learning-rate decay factor of the backbone; 1 gives all layers the same rate."""
    patch_embed_lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate of the patch projection, on top of `layer_decay`; DINOv2 has 0.2."""
    head_lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate of everything outside the backbone: heads, predictors, and the pool except its norm.
    With `init` weights they are new and learn little at the backbone's rate; NeCo (arXiv 2408.11054) uses 10."""
    clip: NonNegativeFloat = 3.0
    """Largest gradient norm; 0 disables clipping."""
    clip_mode: ClipMode = "tensor"
    """Norm to clip: per parameter tensor, as in the released code, or global."""
    freeze_last_layer_epochs: NonNegativeFloat = 1
    """Initial epochs in which the last layer of prototype heads is frozen."""
    freeze_backbone_epochs: NonNegativeFloat = 0
    """Initial epochs that train only the new heads, to protect the weights of `init`."""
    teacher_momentum: Fraction = 0.996
    """EMA momentum of the teacher at the start of its cosine schedule."""
    teacher_momentum_end: Fraction = 1.0
    """EMA momentum of the teacher at the end of its cosine schedule."""
    teacher_moves: Literal["after_step", "before_step"] = "after_step"
    """Time of the teacher's EMA update; `before_step` (MoCo, MoBY) takes the next momentum at the end of each step."""
    teacher_temp: PositiveFloat = 0.04
    """Softmax temperature of the teacher after its warm-up."""
    warmup_teacher_temp: PositiveFloat = 0.04
    """Softmax temperature of the teacher at the start of its warm-up."""
    teacher_patch_temp: PositiveFloat | None = None
    """Softmax temperature of the teacher's patch tokens after the warm-up (iBOT); if not given, `teacher_temp`."""
    warmup_teacher_patch_temp: PositiveFloat | None = None
    """Same temperature at the start of the warm-up (iBOT); if not given, `warmup_teacher_temp`."""
    warmup_teacher_temp_epochs: NonNegativeFloat = 0
    """Length of the linear warm-up of the teacher's temperatures, in epochs."""
    teacher_temp_interval: Literal["step", "epoch"] = "epoch"
    """Interval at which the teacher's temperatures rise: at every epoch (DINO's code), or at every step (VISSL)."""


@settings
class LoaderConfig:
    """Reading and rendering of images."""

    workers: Workers | None = None
    """Loader processes per training process. Defaults to one fewer than the process's share of the cores."""
    render: Literal["auto", "plain", "fast", "device"] = "auto"
    """Renderer of the drawn crops: Pillow, OpenCV (`pip install 'selfpatch[fast]'`), or the training device, so that
    workers only decode. `auto` is `device` on CUDA, else `fast` where OpenCV is installed. All draw the same crops;
    their pixels differ by less than one level on average."""
    max_pixels: NonNegativeInt = 1_000_000
    """Largest number of pixels of an image sent to a rendering device; larger ones are shrunk first, unless it is 0."""
    max_bad: Fraction = 0.01
    """Largest fraction of unreadable images among those that were read; the run stops above it."""
    timeout: Annotated[NonNegativeFloat, SPEED_ONLY] = 600
    """Seconds to wait for a loader process; then the run is saved and ends. 0 waits for ever."""
    held_out: NonNegativeInt = 32
    """Number of images kept out of training to measure on, at most a tenth of the data; 0 keeps none."""
    fingerprint: Fingerprint = "size_and_time"
    """Record of each image, from which a resumed run tells which have changed: size and modification time, or a hash of
    the content, for which all files are read at the start and at each resume."""


@settings
class WatchConfig:
    """Logging and online evaluation of a run."""

    log_every: PositiveInt = 10
    """Number of steps between two lines of metrics.jsonl."""
    evaluate_every: NonNegativeFloat = 1
    """Epochs between online evaluations (view matching, k-NN, picture sheet); 0 evaluates only at the end."""
    knn_images: NonNegativeInt = 1000
    """Largest number of labelled images for the online k-NN; 0 turns it off."""
    picture_images: NonNegativeInt = 6
    """Number of images on each picture sheet; 0 draws none."""


@settings
class CheckpointConfig:
    """Times at which checkpoints are written, beyond the end of the run and signals, and which are kept."""

    every_minutes: NonNegativeFloat = 5
    """Time between two checkpoints, in minutes."""
    every_steps: NonNegativeInt = 0
    """Number of steps between checkpoints; 0 saves by time only."""
    keep: PositiveInt = 2
    """Number of most recent checkpoints that are kept."""
    format: Literal["auto", "file", "sharded"] = "auto"
    """One `file` that the main process writes while training waits, or `sharded`: a folder that all processes write in
    the background; `auto` is sharded where parameters are (--parallel fsdp)."""
    keep_every_epochs: NonNegativeInt = 0
    """Number of epochs between two checkpoints that are kept for good; 0 keeps none."""
    max_nonfinite: PositiveInt = 5
    """Number of successive steps with a non-finite loss or gradient after which the run stops."""
