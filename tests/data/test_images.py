"""Centre crops of whole images: equal to torchvision's transforms; unreadable images are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from selfpatch.data.decode.opening import LIMIT_VARIABLE
from selfpatch.data.decode.pillow import BadImage
from selfpatch.data.images import limited, load_images
from selfpatch.data.sources.index import ImageIndex


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(40, 60), (60, 40), (33, 33), (20, 90)]):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    return ImageIndex(tmp_path, [b"%d.png" % i for i in range(5)])


@pytest.mark.parametrize(("size", "resize"), [(24, None), (24, 30), (48, None)])
def test_crops_equal_torchvisions(index: ImageIndex, size: int, resize: int | None) -> None:
    steps = [transforms.Resize(resize or size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    transform = transforms.Compose([*steps, transforms.PILToTensor()])
    indices = [3, 0, 2, 1]
    images, kept = load_images(index, indices, size, resize=resize)
    assert kept.tolist() == indices
    torch.testing.assert_close(images, torch.stack([transform(Image.open(index.path(i))) for i in indices]))
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("size", [(24, 48), (48, 24), (30, 31)])
def test_wide_and_high_crops_are_the_largest_in_the_middle(index: ImageIndex, size: tuple[int, int]) -> None:
    images, _ = load_images(index, [0, 1, 2, 3], size)
    assert images.shape == (4, 3, *size)
    for i, image in enumerate(images):
        picture = Image.open(index.path(i))
        scale = max(size[0] / picture.height, size[1] / picture.width)
        resized = picture.resize((int(scale * picture.width + 1e-6), int(scale * picture.height + 1e-6)))
        expected = transforms.functional.center_crop(transforms.functional.pil_to_tensor(resized), [*size])
        torch.testing.assert_close(image, expected)


def test_unreadable_images_are_left_out(index: ImageIndex) -> None:
    images, kept = load_images(index, np.array([0, 4, 1]), 16)
    assert images.shape == (2, 3, 16, 16)
    assert kept.tolist() == [0, 1]


def test_a_line_that_no_resize_could_hold_is_left_out(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4000, 1)).save(index.path(1))
    monkeypatch.setenv(LIMIT_VARIABLE, "10000")
    bad: list[BadImage] = []
    _, kept = load_images(index, [0, 1, 4], 16, on_bad=bad.append)
    assert kept.tolist() == [0]
    assert [error.path for error in bad] == [str(index.path(1)), str(index.path(4))]
    assert bad[0].reason.startswith("an image of 4000 x 1 pixels, resized to 64000 x 16, would have more than 10000")


def test_unusable_input_is_refused(index: ImageIndex) -> None:
    with pytest.raises(ValueError, match=r"no image can be read \(1 tried\), e\.g\. cannot read .*4\.png"):
        load_images(index, [4], 16)
    with pytest.raises(ValueError, match="let resize be 16 or more"):
        load_images(index, [0], 16, resize=8)


def test_real_photographs(data_dir: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(data_dir / "cifar10_mini" / "test", tmp_path)
    images, kept = load_images(index, range(100), 32)
    assert images.shape == (100, 3, 32, 32)
    assert len(kept) == 100
    first = torch.from_numpy(np.array(Image.open(index.path(0)))).permute(2, 0, 1)
    torch.testing.assert_close(images[0], first)  # already 32 x 32: not touched


def test_a_part_is_evenly_spread() -> None:
    assert limited("abcdefg", None) == "abcdefg"
    assert [limited("abcdefg", count) for count in (1, 2, 3, 99)] == [["a"], ["a", "g"], ["a", "d", "g"], [*"abcdefg"]]
