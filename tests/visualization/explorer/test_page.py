"""What the explorer page holds; `test_page_browser.py` uses it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.visualization.encoded import EncodedPicture
from selfpatch.visualization.explorer.config import ExploreConfig
from selfpatch.visualization.explorer.page import MEGABYTE, write_explorer
from selfpatch.visualization.explorer.quantise import quantise
from selfpatch.visualization.queries import find_positives
from tests.visualization.explorer.conftest import NAMES, data_of

Networks = Mapping[str, list[EncodedPicture]]


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_images_and_grids(page: Path) -> None:
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == NAMES
    assert [image["sides"] for image in data["images"]] == [[128, 64], [64, 128], [64, 64]]
    picture = data["images"][0]["picture"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.size == (128, 64)
    assert [(network["name"], network["patch"]) for network in data["networks"]] == [("coarse", 16), ("fine", 8)]
    assert data["networks"][1]["grids"] == [[8, 16], [16, 8], [8, 8]]
    assert all(0 < fraction < 1 for fraction in data["start"])


def test_features_colours_and_positives_are_those_of_the_patches(page: Path, networks: Networks) -> None:
    for network, pictures in zip(data_of(page)["networks"], networks.values(), strict=True):
        features = torch.cat([picture.features.flatten(0, 1) for picture in pictures])
        quantised = quantise(features, 128)
        assert np.array_equal(unpacked(network["codes"], "<i1").reshape(-1, 6), quantised.codes)
        assert np.array_equal(unpacked(network["scales"], "<f4"), quantised.scales)
        assert np.array_equal(unpacked(network["offsets"], "<f4"), quantised.offsets)
        assert network["error"] == {"rms": quantised.rms_error, "max": quantised.max_error}
        assert network["error"]["max"] < 0.01  # all six dimensions are kept
        assert len(unpacked(network["colours"], "<u1")) == 3 * len(features)
        positives = unpacked(network["positives"], "<i4").reshape(-1, 3)
        first = pictures[0].features
        matches = find_positives(first, range(len(first.flatten(0, 1))), 3, 3, "wrap")
        assert positives[: len(matches)].tolist() == [match.picked for match in matches]


def test_missing_positives_are_marked(networks: Networks, tmp_path: Path) -> None:
    """A corner has three neighbours without a border to continue at."""
    path = write_explorer(tmp_path / "page.html", "", NAMES, networks, ExploreConfig(k=5, border="clip"))
    positives = unpacked(data_of(path)["networks"][0]["positives"], "<i4").reshape(-1, 5)
    assert (positives[0] == -1).tolist() == [False, False, False, True, True]


def test_the_page_needs_nothing_else_and_names_cannot_break_out(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script|img)[^>]+(href|src)=", text)
    assert "three &lt;images&gt;</h1>" in text
    assert text.count("</script>") == 2  # data and code
    assert "</script><b>" not in text


def test_the_page_is_as_small_as_asked_for(networks: Networks, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def picture() -> EncodedPicture:
        features = torch.nn.functional.normalize(torch.randn(20, 30, 64, generator=generator), dim=-1)
        return EncodedPicture(torch.zeros(3, 280, 420, dtype=torch.uint8), features)

    names, noise = ["a", "b"], {"a": [picture(), picture()], "b": [picture(), picture()]}
    sizes = {}
    for megabytes in (0.2, 0.25, 14):
        path = write_explorer(tmp_path / "page.html", "", names, noise, ExploreConfig(megabytes=megabytes))
        assert path.stat().st_size < megabytes * MEGABYTE
        sizes[megabytes] = data_of(path)["networks"][0]["components"]
    assert 8 <= sizes[0.2] < sizes[0.25] < sizes[14] == 64
    with pytest.raises(ValueError, match=r"2 images with 2400 patches needs 0\.\d MB at least.*megabytes is 0\.1"):
        write_explorer(tmp_path / "page.html", "", names, noise, ExploreConfig(megabytes=0.1))


def test_what_cannot_be_shown_is_refused(networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image to show"):
        write_explorer(tmp_path / "page.html", "", [], networks)
    with pytest.raises(ValueError, match="no network to show"):
        write_explorer(tmp_path / "page.html", "", NAMES, {})
    with pytest.raises(ValueError, match="k is 40"):
        write_explorer(tmp_path / "page.html", "", NAMES, networks, ExploreConfig(k=40, window="all"))
    assert not (tmp_path / "page.html").exists()
