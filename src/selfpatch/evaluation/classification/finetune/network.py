"""The fine-tuned network: a copy of the backbone, and a linear head or the first layers of the projection head."""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.finetuning import trainable_copy
from selfpatch.models.encoder import BranchEncoder, image_token, share_final_norm
from selfpatch.models.heads import Prototypes


class ProjectionClassifier(nn.Module):
    """The first layers of a pre-trained projection head below a fresh classifier of K classes.

        fewer layers than the head has:  x = GELU(linear(x)) for each, then classify(x)
        all layers:                      classify(normalise(mlp(x)) @ prototypes)

    This is `ClassProjHead` of iBOT's evaluation/semi_supervised/eval_cls.py (arXiv 2111.07832; parity
    `ibot_semi_supervised_head`). The gains of the prototypes are trained, whether or not pre-training did.

    Args:
        projection: weights of a `PrototypeHead`, by its names.
        layers: number of its linear layers to keep, at least 1.
        num_classes: number of classes.

    Raises:
        ValueError: there is no head, it has fewer layers, or it has batch norms.
    """

    def __init__(self, projection: Mapping[str, Tensor], layers: int, num_classes: int) -> None:
        super().__init__()
        weights = _linear_weights(projection)
        if layers > len(weights):
            raise ValueError(f"head_layers is {layers}, but the projection head has {len(weights)}; use at most these")
        parts: list[nn.Module] = []
        for weight in weights[:layers]:
            parts += [nn.Linear(weight.shape[1], weight.shape[0]), nn.GELU()]
        width = weights[layers - 1].shape[0]
        self.last_layer: Prototypes | None = None
        if layers == len(weights):
            parts.pop()
            width, bottleneck = projection["last_layer.weight_v"].shape
            self.last_layer = Prototypes(width, bottleneck, trainable_gain=True)
        self.mlp = nn.Sequential(*parts)
        self.load_state_dict({name: projection[name] for name in self.state_dict()})
        self.classify = nn.Linear(width, num_classes)

    def forward(self, token: Tensor) -> Tensor:
        """Return the logits [B, K] of image tokens [B, D]."""
        x = self.mlp(token)
        if self.last_layer is not None:
            x = F.linear(F.normalize(x, dim=-1), self.last_layer())
        return self.classify(x)


def _linear_weights(projection: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the weights [out, in] of the linear layers of a head's MLP, from the first to the last."""
    numbers = sorted(int(name.split(".")[1]) for name in projection if name.startswith("mlp.") and "weight" in name)
    weights = [projection[f"mlp.{number}.weight"] for number in numbers]
    if not weights or "last_layer.weight_v" not in projection:
        raise ValueError(
            "head_layers needs a pre-trained projection head, but the weights have none; give a full checkpoint of "
            "DINO, iBOT, SelfPatch or SERE or a run directory of such a method, or use head_layers 0"
        )
    if any(weight.ndim != 2 for weight in weights):
        raise ValueError("the projection head has batch norms, which this classifier has not; use head_layers 0")
    return weights


class Classifier(nn.Module):
    """A copy of an encoder's network with a head of K classes, from images to logits.

    Raises:
        ValueError: the settings ask for layers of a projection head that the encoder lacks.
    """

    def __init__(self, encoder: BranchEncoder, num_classes: int, config: FinetuneConfig) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the fresh weights of the copy are overwritten at once
            self.backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path)
            self.pool = copy.deepcopy(encoder.pool) if config.token == "image" else None
            share_final_norm(self.backbone, self.pool)  # the two copies were made apart
            self.norm = nn.LayerNorm(encoder.dim, eps=1e-6) if config.token == "mean" else None
            self.head: nn.Linear | ProjectionClassifier = (
                ProjectionClassifier(encoder.projection, config.head_layers, num_classes)
                if config.head_layers
                else nn.Linear(encoder.dim, num_classes)
            )
        fresh = self.head.classify if isinstance(self.head, ProjectionClassifier) else self.head
        generator = torch.Generator().manual_seed(config.seed)
        nn.init.trunc_normal_(fresh.weight, std=config.head_std, generator=generator)
        nn.init.zeros_(fresh.bias)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        tokens = self.backbone(images)
        if self.norm is not None:
            return self.head(self.norm(tokens.raw_patches.mean((1, 2))))
        return self.head(image_token(tokens, self.pool))
