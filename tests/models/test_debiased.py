"""Encoders without the directions of positions: what is removed, what is kept, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.models.debiased import debiased
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import NonFiniteFeatures, requiring_finite_features
from selfpatch.ops.debias import position_basis, remove_positions
from selfpatch.ops.images import normalise
from tests.helpers.tiny import tiny_student_teacher


def tiny_encoder() -> BranchEncoder:
    student = tiny_student_teacher(objective="none").student
    return BranchEncoder(student.backbone, None).eval()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_features_are_orthogonal_to_those_of_a_black_image_of_their_size(dtype: torch.dtype | None) -> None:
    encoder = tiny_encoder()
    plain, clean = encoder, debiased(encoder, 3)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        for size in [(16, 16), (16, 24), (16, 16)]:
            images = torch.randn(2, 3, *size)
            found = clean.patches(images)
            black = plain.patches(normalise(torch.zeros(1, 3, *size), encoder.mean, encoder.std))[0].movedim(0, -1)
            features = plain.patches(images).movedim(1, -1)
            with torch.autocast("cpu", enabled=False):
                basis = position_basis(black, 3)
                expected = remove_positions(features, basis)
                assert (found.movedim(1, -1) @ basis).abs().max() < 1e-5
                assert (torch.nn.functional.normalize(features, dim=-1) @ basis).abs().max() > 0.1
            torch.testing.assert_close(found.movedim(1, -1), expected)
    assert torch.equal(clean.image(images), plain.image(images))
    assert isinstance(clean, Encoder)


def test_the_black_image_of_a_size_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = tiny_encoder(), []
    plain = encoder.patches
    monkeypatch.setattr(encoder, "patches", lambda images: seen.append(tuple(images.shape)) or plain(images))
    clean = debiased(encoder, 2)
    for width in (16, 16, 24, 16):
        clean.patches(torch.randn(4, 3, 16, width))
    shapes = [(4, 3, 16, 16), (1, 3, 16, 16), (4, 3, 16, 16), (4, 3, 16, 24), (1, 3, 16, 24), (4, 3, 16, 16)]
    assert seen == shapes


def test_no_directions_leave_the_encoder_itself() -> None:
    encoder = tiny_encoder()
    assert debiased(encoder, 0) is encoder


def test_more_directions_than_there_are_and_broken_networks_are_refused() -> None:
    encoder = tiny_encoder()
    message = r"debias is 16, but 4 x 4 patches of width 16 \(images of 16 x 16 pixels\) have 15 directions; use fewer"
    with pytest.raises(ValueError, match=message):
        debiased(encoder, 16).patches(torch.randn(1, 3, 16, 16))
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteFeatures, match="of a black image of 16 x 16 pixels are not finite"):
        debiased(encoder, 3).patches(torch.randn(1, 3, 16, 16))
    with pytest.raises(NonFiniteFeatures, match="net: the features of batch 1"), requiring_finite_features("net"):
        debiased(encoder, 3).patches(torch.randn(1, 3, 16, 16))


def test_a_constant_encoder_gives_finite_features() -> None:
    class Constant:
        dim, patch_size, mean, std, device = 4, 8, (0.5,) * 3, (0.5,) * 3, torch.device("cpu")

        def patches(self, images: Tensor) -> Tensor:
            return images.new_zeros(len(images), 4, images.shape[2] // 8, images.shape[3] // 8)

        def image(self, images: Tensor) -> Tensor:
            return self.patches(images).mean((2, 3))

    assert debiased(Constant(), 2).patches(torch.randn(1, 3, 16, 24)).isfinite().all()
