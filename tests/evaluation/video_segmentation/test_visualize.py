"""The strip of a clip: captions, and masks that stand out from the pixels below."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.pictures import LINE_HEIGHT
from selfpatch.evaluation.video_segmentation.visualize import COLOURS, HEIGHT, Frame, object_colours, overlay, strip


@pytest.mark.parametrize("colour", COLOURS.tolist())
def test_an_object_is_drawn_in_a_colour_unlike_its_own(colour: list[int]) -> None:
    image, mask = np.full((20, 30, 3), colour, np.uint8), np.zeros((20, 30), np.uint8)
    mask[5:15, 5:12], mask[5:15, 18:25] = 1, 7
    table = object_colours([image], [mask])
    assert (table[1] != table[7]).any(), "objects have different colours"
    drawn = np.asarray(overlay(Image.fromarray(image), mask, table)).astype(int)
    for number, (x, y) in {1: (8, 10), 7: (21, 10)}.items():
        assert np.linalg.norm(drawn[y, x] - image[y, x].astype(int)) > 60, "the tint shows"
        assert np.linalg.norm(table[number].astype(int) - colour) > 200
    assert drawn[10, 5].tolist() == table[1].tolist(), "the contour is of the full colour"
    assert drawn[10, 3].tolist() == [0, 0, 0], "and a dark line sets it off"
    assert drawn[0, 0].tolist() == colour, "the background stays"


def test_colours_repeat_for_more_objects_than_there_are_colours() -> None:
    mask = np.arange(len(COLOURS) + 3, dtype=np.uint8)[None].repeat(4, 0)
    table = object_colours([np.zeros((*mask.shape, 3), np.uint8)], [mask])
    assert len({tuple(colour) for colour in table[1 : len(COLOURS) + 1].tolist()}) == len(COLOURS)
    assert table[len(COLOURS) + 1].any()


def test_each_frame_of_a_strip_has_its_caption_above_it() -> None:
    image, mask = Image.new("RGB", (40, 20), (90, 90, 90)), np.zeros((20, 40), np.uint8)
    named, blank = (np.asarray(strip([Frame(text, image, mask), Frame("", image, mask)])) for text in ("frame 3", ""))
    assert named.shape == (HEIGHT + LINE_HEIGHT, 4 * HEIGHT, 3)
    changed = np.argwhere((named != blank).any(-1))
    assert changed[:, 0].max() < LINE_HEIGHT
    assert changed[:, 1].max() < 2 * HEIGHT
