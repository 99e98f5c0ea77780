"""Settings of the segmentation evaluation, one class per method; those that train the network are in decoder_config."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.config import DenseConfig
from selfpatch.evaluation.segmentation.base_config import (
    Method,
    PatchConfig,
    SegmentationConfig,
    SupervisedConfig,
    TrainedConfig,
)
from selfpatch.evaluation.segmentation.decoder_config import FinetuneSegmentationConfig, FPNConfig, UPerNetConfig

Matching = Literal["one_to_one", "one_to_one_iou", "precision", "iou"]


@settings
class KNNSegmentationConfig(SupervisedConfig, PatchConfig):
    """Retrieval: patches take the labels of the most similar training patches.

    Presets: `whole`, ours, whole images as they are; `hummingbird`, in-context scene understanding (arXiv 2306.01667)
    as open-hummingbird-eval measures it, version 2.
    """

    # hummingbird: settings of its README's table, which has memories of 102,400, 1,024,000 and 10,240,000 patches. Its
    # exact search stands in for ScaNN and FAISS. Not known: the passes and memories of published shares of the data.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "whole": {},
        "hummingbird": {
            "shape": "square", "passes": 2, "augment": True, "memory_patches": 10_240_000, "void_as_background": True,
            "std": "released", "hungarian": True, "absent_as_zero": True,
        },
    }  # fmt: skip

    method: Method = "knn"
    preset: Literal["whole", "hummingbird"] = "whole"
    """Protocol whose settings are the defaults."""
    resolution: PositiveInt = 512
    k: PositiveInt = 30
    """Number of patches that vote."""
    temperature: PositiveFloat = 0.02
    """Softmax temperature of the votes."""
    passes: PositiveInt = 1
    """Number of times that each training image is seen to fill the memory, which is divided among the passes."""
    augment: bool = False
    """Remember random crops of other colours in place of the images; square only."""
    void_as_background: bool = False
    """Remember void pixels as a class, as if they had the number 0: of VOC the background, of ADE20K a class of its
    own, which is never right. Otherwise they have no label."""
    std: Literal["encoder", "released"] = "encoder"
    """Standard deviation that images are normalised by: `encoder` uses the encoder's own; `released` that of
    open-hummingbird-eval, (0.229, 0.224, 0.255), in place of ImageNet's."""
    hungarian: bool = False
    """Match predicted to true classes one to one by IoU before scoring, as open-hummingbird-eval does; this hides
    classes that are taken for each other."""
    search: Literal["exact", "faiss"] = "exact"
    """Search for neighbours: `exact` compares all patches; `faiss` searches 32 of 512 lists, on the CPU (`pip install
    'selfpatch[faiss]'`)."""
    max_memory: Annotated[PositiveInt, SPEED_ONLY] = 128
    """Memory limit in MB for the similarities of patches, and for the logits of an image; changes speed and memory
    only. The remembered patches and the encoder's own memory come on top."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment and self.shape != "square":
            raise ValueError("augment is True, but its crops are square; set shape to square too")


@settings
class LogisticSegmentationConfig(SupervisedConfig, PatchConfig):
    """Logistic regression on frozen patches by L-BFGS."""

    method: Method = "logistic"
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty on the weights."""
    iterations: PositiveInt = 100
    """Largest number of L-BFGS iterations."""


_OVERCLUSTERING: Mapping[str, Any] = {
    "resolution": 448, "shape": "square", "mask_side": 100, "memory_patches": None, "features": "standardised",
    "components": 50, "init": "random", "points_per_cluster": 256, "iterations": 100, "restarts": 5, "seeds": 5,
    "absent_as_zero": True,
}  # fmt: skip


@settings
class KMeansSegmentationConfig(PatchConfig):
    """Clusters of the test images' patches, matched to classes, without training.

    Presets: `whole`, ours, one cluster for each class; `overclustering`, the protocol of Leopart's (arXiv 2204.13101)
    and NeCo's tables with 500 clusters; `clustering`, the same with a cluster for each class.
    """

    # overclustering, clustering: NeCo's released eval_overcluster.py, and the defaults of FAISS that it relies on (256
    # points for each cluster, centres drawn from the points). FAISS splits a large cluster in place of an empty one.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "whole": {},
        "overclustering": {**_OVERCLUSTERING, "num_clusters": 500, "matching": "precision"},
        "clustering": {**_OVERCLUSTERING, "matching": "one_to_one_iou"},
    }

    method: Method = "kmeans"
    preset: Literal["whole", "overclustering", "clustering"] = "whole"
    """Protocol whose settings are the defaults."""
    memory_patches: PositiveInt | None = 200_000
    num_clusters: PositiveInt | None = None
    """Number of clusters; defaults to the number of classes. More of them need another `matching` (overclustering)."""
    matching: Matching = "one_to_one"
    """Class of a cluster: `one_to_one` so that most pixels are right, `one_to_one_iou` so that the sum of IoUs is
    largest, or that of its highest `precision` or `iou`."""
    features: Literal["unit", "standardised"] = "unit"
    """Features that are clustered: of length 1, or with mean 0 and standard deviation 1 in each dimension."""
    components: PositiveInt | None = None
    """Number of principal components that features are reduced to; they stay as they are if None."""
    init: Literal["plus_plus", "random"] = "plus_plus"
    """First centres: by k-means++, or points drawn at random."""
    points_per_cluster: PositiveInt | None = None
    """Largest number of patches for each cluster that k-means learns from; all of them if None."""
    iterations: PositiveInt = 50
    """Largest number of iterations per run of k-means."""
    restarts: PositiveInt = 3
    """Number of runs of k-means, of which the best is taken."""
    seeds: PositiveInt = 1
    """Number of clusterings, with seeds from `seed` on; scores are means, and `mIoU std` is their spread."""


@settings
class LinearSegmentationConfig(DenseConfig, TrainedConfig):
    """Linear segmentation: one 1x1 convolution on frozen patch features.

    Presets: `leopart`, Ziegler and Asano (arXiv 2204.13101) and their released code; `neco`, the same with NeCo's
    batches (arXiv 2408.11054); `full`, the linear protocol of DINOv2 (arXiv 2304.07193) on mmsegmentation; `dinov3`,
    that of DINOv3 (arXiv 2508.10104); `small`, ours, for a minute or two on a CPU.
    """

    # neco: its configurations of VOC, 25 epochs with a tenth of the rate after 20. It quotes the best epoch on the test
    # set; here the last one counts.
    # dinov3: published numbers are the best of learning rates 1e-4, 3e-4, 1e-3 and weight decays 1e-4, 1e-3; the
    # preset takes the largest of both.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "leopart": {},
        "neco": {"batch_size": 128, "absent_as_zero": True},
        "full": {
            "crop": 512, "augmentation": "scale_crop", "optimizer": "adamw", "lr": 1e-3, "batch_size": 16,
            "steps": 40_000, "epochs": None, "warmup": 1500, "batch_norm": True, "mask_side": None, "test": "slide",
        },
        "dinov3": {
            "crop": 512, "augmentation": "scale_crop", "antialias": True, "optimizer": "adamw", "lr": 1e-3,
            "weight_decay": 1e-3, "batch_size": 16, "steps": 40_000, "epochs": None, "warmup": 1500,
            "schedule": "one_cycle", "clip": 35.0, "dropout": 0.1, "batch_norm": True, "mask_side": None,
            "test": "slide",
        },
        "small": {
            "crop": 160, "augmentation": "scale_crop", "optimizer": "adamw", "lr": 5e-3, "batch_size": 8,
            "steps": 120, "epochs": None, "warmup": 12, "batch_norm": True, "mask_side": 40, "test": "whole",
        },
    }  # fmt: skip

    method: Method = "linear"
    preset: Literal["leopart", "neco", "full", "dinov3", "small"] = "leopart"
    """Published protocol whose settings are the defaults."""
    crop: PositiveInt = 448
    """Side of the training and test images, in pixels, rounded down to a multiple of the patch size."""
    augmentation: Literal["resized_crop", "scale_crop"] = "resized_crop"
    """Training crops: resized_crop makes a box of 80 to 100 % of the image square; scale_crop draws a scale of 0.5 to
    2 and a crop, and distorts colours. Both flip."""
    antialias: bool = False
    """Resize images of scale_crop and slide as torchvision does, antialiased; else as OpenCV, which is not."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: sgd (momentum 0.9) or adamw."""
    schedule: Literal["step", "polynomial", "one_cycle"] | None = None
    """Learning rate: step (a tenth after 4/5 of the steps), polynomial (warm-up, linear decay) or one_cycle (DINOv3's
    warm-up and cosine); defaults to step for sgd and polynomial for adamw."""
    lr: PositiveFloat = 0.01
    """Peak learning rate."""
    batch_size: PositiveInt = 60
    steps: PositiveInt | None = None
    """Number of optimizer steps; if not given, derived from epochs."""
    epochs: PositiveInt | None = 25
    """Number of passes over the training images; ignored if steps is given."""
    warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises, at most a tenth of all; not with schedule step."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 turns clipping off."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the channels of an image that are dropped before the batch norm in training."""
    batch_norm: bool = False
    """Normalise features by a batch norm before the convolution."""
    mask_side: PositiveInt | None = 100
    """Side in pixels that labels are reduced to in training, and in a square test; if None, they keep their size."""
    test: Literal["square", "whole", "slide"] = "square"
    """View of a test image: square squeezes it to the crop and scores at mask_side; whole resizes its short side to
    the crop; slide also cuts it into windows, 2/3 of the crop apart. The last two are scored at the image's size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup and self.optimizer == "sgd" and self.schedule in (None, "step"):
            raise ValueError(f"warmup is {self.warmup}, but sgd trains without; leave it out, or use preset full")
        if self.steps is None and self.epochs is None:
            raise ValueError("steps and epochs are None; use a number for one of them")


_FROZEN = (KNNSegmentationConfig, LinearSegmentationConfig, LogisticSegmentationConfig, KMeansSegmentationConfig)
_TRAINED = (FinetuneSegmentationConfig, FPNConfig, UPerNetConfig)
SegmentationConfig.variants = ("method", {cls.method: cls for cls in (*_FROZEN, *_TRAINED)})
