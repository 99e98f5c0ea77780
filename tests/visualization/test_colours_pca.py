"""PCA colours against numpy's SVD and against cases whose picture is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfpatch.visualization.colours import patch_map, pca_colours, principal_components


def test_components_are_those_of_the_svd() -> None:
    x = torch.randn(200, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    coordinates, deviations = principal_components(x)
    u, s, vt = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    assert np.allclose(np.abs(coordinates.numpy()), np.abs(u * s)[:, :3], atol=1e-9)
    assert np.allclose(deviations.numpy(), s[:3] / 200**0.5)
    # The sign is the one for which the direction's largest loading is positive.
    for c in range(3):
        sign = np.sign(vt[c, np.abs(vt[c]).argmax()])
        assert np.allclose(coordinates[:, c].numpy(), u[:, c] * s[c] * sign, atol=1e-9)


def test_two_clusters_get_two_colours() -> None:
    left = torch.tensor([4.0, 0.0, 1.0, 0.0, 0.0])
    right = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    features = left.expand(1, 6, 8, 5).clone()
    features[:, :, 4:] = right
    colours = pca_colours(features)
    assert colours.shape == (1, 6, 8, 3)
    assert colours.dtype == torch.uint8
    # One direction varies, its largest loading is the first feature's: left is high on it, the other channels are grey.
    assert (colours[:, :, :4] == torch.tensor([255, 128, 128])).all()
    assert (colours[:, :, 4:] == torch.tensor([0, 128, 128])).all()


def test_one_odd_patch_is_drawn_although_the_quantiles_leave_it_out() -> None:
    features = torch.zeros(1, 20, 20, 4)
    features[0, 3, 5, 2] = 1
    colours = pca_colours(features)
    assert colours[0, 3, 5].tolist() == [255, 128, 128]
    assert colours[0, 0, 0].tolist() == [0, 128, 128]


def test_an_extreme_patch_does_not_flatten_the_others() -> None:
    features = torch.linspace(0, 1, 400).reshape(1, 20, 20, 1).repeat(1, 1, 1, 2) * torch.tensor([1.0, 0.0])
    features[0, 10, 10, 0] = 1000.0
    assert pca_colours(features)[0, ..., 0].float().std() > 60


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_constant_features_are_grey(value: float) -> None:
    assert (pca_colours(torch.full((2, 3, 4, 16), value)) == 128).all()


def test_rounding_noise_is_not_drawn() -> None:
    noise = 1e-7 * torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    assert (pca_colours(1 + noise) == 128).all()


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_few_features(dim: int) -> None:
    features = torch.randn(2, 4, 5, dim, generator=torch.Generator().manual_seed(0))
    colours = pca_colours(features)
    assert colours.shape == (2, 4, 5, 3)
    varies = [len(colours[..., c].unique()) > 1 for c in range(3)]
    assert varies == [c < dim for c in range(3)]


def test_patches_that_are_not_finite_are_black_and_change_no_other() -> None:
    features = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    features[0, 1, 2, 3], features[0, 4, 4, 0] = float("nan"), float("inf")
    colours = pca_colours(features)
    kept = torch.ones(6, 6, dtype=torch.bool)
    kept[1, 2] = kept[4, 4] = False
    assert (colours[0][~kept] == 0).all()
    assert torch.equal(colours[0][kept], pca_colours(features[0][kept][None, None])[0, 0])
    assert (pca_colours(torch.full((1, 2, 2, 4), float("nan"))) == 0).all()


def test_equal_features_give_equal_pictures() -> None:
    features = torch.randn(3, 5, 5, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pca_colours(features), pca_colours(features.clone()))
    # A shift and a positive scale of all features change nothing.
    assert (pca_colours(features).int() - pca_colours(5 * features + 3).int()).abs().max() <= 1


def test_images_share_one_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 5, 6, generator=generator) * torch.tensor([1.0, 9.0])[:, None, None, None]
    assert torch.equal(pca_colours(features), pca_colours(features.reshape(1, 10, 5, 6)).reshape(2, 5, 5, 3))
    assert not torch.equal(pca_colours(features)[:1], pca_colours(features[:1]))


def test_low_precision_features() -> None:
    features = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(pca_colours(features), pca_colours(features.float()))


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4, 8\].*\[n, h, w, D\]"):
        pca_colours(torch.zeros(4, 4, 8))


def test_patch_map_keeps_edges_sharp() -> None:
    colours = torch.tensor([[[255, 0, 0], [0, 255, 0]]], dtype=torch.uint8)
    image = np.asarray(patch_map(colours, (20, 10)))
    assert (image[:, :10] == [255, 0, 0]).all()
    assert (image[:, 10:] == [0, 255, 0]).all()
