"""Three encoded pictures, and a page of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from selfpatch.visualization.encoded import EncodedPicture, encode_picture
from selfpatch.visualization.explorer.config import ExploreConfig
from selfpatch.visualization.explorer.page import write_explorer
from tests.helpers.colour_encoder import ColourEncoder

NAMES = ["wide.png", "tall.png", "</script><b>.png"]


class FineEncoder(ColourEncoder):
    patch_size = 8


@pytest.fixture(scope="session")
def networks() -> Mapping[str, list[EncodedPicture]]:
    """Images of 128 x 64, 64 x 128 and 64 x 64 pixels, in patches of 16 and of 8."""
    pixels = skimage.data.astronaut()
    pictures = [Image.fromarray(part) for part in (pixels[:256], pixels[:, 100:356], pixels[:256, 100:356])]
    return {
        name: [encode_picture(encoder, picture, 64, name) for picture in pictures]
        for name, encoder in {"coarse": ColourEncoder(), "fine": FineEncoder()}.items()
    }


@pytest.fixture(scope="session")
def page(networks: Mapping[str, list[EncodedPicture]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "explore.html"
    return write_explorer(path, "three <images>", NAMES, networks, ExploreConfig(k=3))


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])
