"""Position debiasing: remove from patch features the directions that tell where a patch is.

`position_basis` and `remove_positions` are those of INSID3 (arXiv 2603.28480), which needs no training; the others are
those of RASA, which Franca trains on a frozen backbone (arXiv 2507.14137).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.ops.contrast import l2_normalize


def position_basis(blank: Tensor, rank: int) -> Tensor:
    """Return the directions in which the patches of a blank image differ.

        X = the patches of length 1 minus their mean, [D, N]
        U = first `rank` left singular vectors of X

    The released code encodes a black image at the size of inference, the paper noise. It removes 500 directions of
    1024 (ViT-L); with a ViT-S, of width 384, that would remove everything. Singular vectors have no sign of their own.

    Args:
        blank: [..., D] patches of one blank image, for example [h, w, D].
        rank: number of directions.

    Returns:
        Orthonormal columns [D, rank] float32, for `remove_positions`.

    Raises:
        ValueError: there are fewer directions than `rank`.
    """
    x = l2_normalize(blank).flatten(0, -2)  # [N, D]
    largest = min(len(x), x.shape[1]) - 1
    if not 1 <= rank <= largest:
        raise ValueError(f"rank is {rank}, but patches {list(x.shape)} of a blank image have 1 to {largest} directions")
    return torch.linalg.svd((x - x.mean(0)).mT, full_matrices=False).U[:, :rank]


def remove_positions(features: Tensor, basis: Tensor) -> Tensor:
    """Return features [..., D] without the directions U of `position_basis`, of length 1.

        for each patch:
            y = x / |x|
            z = y - U U^T y
            z / |z|

    The result is float32.
    """
    x = l2_normalize(features)
    return l2_normalize(x - x @ basis @ basis.mT)


def remove_position_layers(features: Tensor, layers: Tensor) -> Tensor:
    """Remove what linear predictors of the position read, one after the other.

        for each layer W [2, D]:
            x -= projection of x on the span of W's two rows

    Features are [..., D] of any length, layers [L, 2, D] in the order of their training: each was fitted, by
    `position_loss`, to what the earlier ones leave over. Franca has nine. The result is float32.
    """
    x = features.float()
    for layer in layers.float():
        x = x - x @ torch.linalg.pinv(layer) @ layer
    return x


def predict_positions(features: Tensor, layer: Tensor) -> Tensor:
    """Return the positions (row, column) that a layer W [2, D] reads from features [..., D]: sigmoid(W x), [..., 2]."""
    return (features.float() @ layer.float().mT).sigmoid()


def position_loss(features: Tensor, layer: Tensor) -> Tensor:
    """Compute the mean squared error of the predicted positions, a scalar; RASA minimises it for the layer alone.

        for each image, for each patch (row, column) of the h x w grid:
            loss += mean of (sigmoid(W x) - (row / (h - 1), column / (w - 1)))^2

    Args:
        features: [B, h, w, D] patches without what earlier layers read; they take no gradient.
        layer: [2, D] weights W of this round.

    Raises:
        ValueError: the grid has one row or column, whose position is not defined.
    """
    h, w = features.shape[1:3]
    if h < 2 or w < 2:
        raise ValueError(f"a grid of {h} x {w} patches has no positions to tell; use images of 2 x 2 patches or more")
    sides = [torch.linspace(0, 1, side, device=features.device) for side in (h, w)]
    positions = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)  # [h, w, 2]
    predicted = predict_positions(features.detach(), layer)
    return F.mse_loss(predicted, positions.expand_as(predicted))
