"""The explorer page in a real browser: load, click, drag, keys, touch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfpatch.visualization.encoded import EncodedPicture
from selfpatch.visualization.explorer.quantise import cosines, quantise

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Explorer:
    """A page in the browser, what it complains of and what it asks the network for."""

    def __init__(self, browser: Any, page: Path, **context: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url[:40]))
        self.page.goto(page.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until everything is drawn and told."""
        self.page.wait_for_function("globalThis.explorer?.drawnIn > 0")
        self.page.wait_for_timeout(200)

    def box(self, board: int, image: int) -> dict[str, float]:
        return self.page.locator(".board").nth(board).locator(".panel").nth(image).bounding_box()

    def point(self, board: int, image: int, x: float, y: float) -> tuple[float, float]:
        box = self.box(board, image)
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def patches(self, board: int = 0) -> list[int] | None:
        """Image, row, column, rows and columns of the outlined query."""
        outline = f"explorer.boards[{board}].tiles[query.image].marks.querySelector('.query')"
        sides = f"['y', 'x', 'height', 'width'].map((name) => Number({outline}.getAttribute(name)))"
        return self.page.evaluate(f"(({{ query }}) => query && [query.image, ...{sides}])(explorer.state)")

    def readout(self) -> str:
        return self.page.inner_text("#readout")


@pytest.fixture
def explorer(browser: Any, page: Path) -> Iterator[Explorer]:
    opened = Explorer(browser, page)
    yield opened
    opened.page.context.close()
    assert not opened.complaints
    assert all(url.startswith(("file:", "data:")) for url in opened.requests)


def test_a_click_compares_the_patch_with_all_images_in_both_networks(
    explorer: Explorer, networks: Mapping[str, list[EncodedPicture]]
) -> None:
    explorer.page.mouse.click(*explorer.point(0, 1, 0.3, 0.7))
    explorer.settle()
    assert explorer.patches(0) == [1, 5, 1, 1, 1]  # row 5 of 8, column 1 of 4
    assert explorer.patches(1) == [1, 11, 2, 1, 1]  # the same place in patches half as large
    assert "tall.png, row 6 of 8, column 2 of 4" in explorer.readout()
    assert "fine: best match" in explorer.readout()
    for number, pictures in enumerate(networks.values()):
        features = torch.cat([picture.features.flatten(0, 1) for picture in pictures])
        q = quantise(features, 128)
        counts = [picture.features[..., 0].numel() for picture in pictures]
        query = counts[0] + (5 * 4 + 1, 11 * 8 + 2)[number]
        expected = cosines(q.codes, q.scales, q.offsets, q.mean_square, torch.tensor([query]))[0]
        found = explorer.page.evaluate(f"[...explorer.boards[{number}].cosines]")
        assert np.allclose(found, expected, atol=1e-5)
        assert np.allclose(found, features @ features[query], atol=q.max_error + 1e-6)
        best = [part.argmax() for part in expected.split(counts)]
        matches = explorer.page.evaluate(f"explorer.boards[{number}].matches")
        assert {match["image"]: match["patch"] for match in matches} == {0: int(best[0]), 2: int(best[2])}
    assert explorer.page.locator(".board >> nth=0 >> .marks .positive").count() == 3
    assert explorer.page.locator(".board >> nth=0 >> .lines circle").count() == 2
    print(f"\nredrawn in {explorer.page.evaluate('explorer.drawnIn'):.1f} ms")


def test_a_drag_asks_for_the_mean_of_a_region(explorer: Explorer, networks: Mapping[str, list[EncodedPicture]]) -> None:
    mouse = explorer.page.mouse
    mouse.move(*explorer.point(0, 0, 0.05, 0.1))
    mouse.down()
    mouse.move(*explorer.point(0, 0, 0.2, 0.3), steps=3)
    mouse.up()
    explorer.settle()
    assert explorer.patches(0) == [0, 0, 0, 2, 2]
    assert "region of 2 × 2 patches" in explorer.readout()
    features = torch.cat([picture.features.flatten(0, 1) for picture in networks["coarse"]])
    mean = features[[0, 1, 8, 9]].mean(0)
    found = explorer.page.evaluate("[...explorer.boards[0].cosines]")
    assert np.allclose(found, features @ mean / mean.norm(), atol=0.01)
    mouse.move(*explorer.point(0, 0, 0.9, 0.9))  # the button is up
    explorer.settle()
    assert explorer.patches(0) == [0, 0, 0, 2, 2]


def test_keys(explorer: Explorer) -> None:
    press = explorer.page.keyboard.press
    panels = explorer.page.locator(".panel")
    explorer.page.mouse.click(*explorer.point(0, 0, 0.05, 0.1))
    panels.nth(0).focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        press(key)
    explorer.settle()
    assert explorer.patches() == [0, 1, 0, 1, 1]  # it stops at the border
    press("Shift+ArrowRight")
    press("Shift+ArrowDown")
    explorer.settle()
    assert explorer.patches() == [0, 1, 0, 2, 2]
    press("Tab")
    assert panels.nth(1).evaluate("(panel) => panel === document.activeElement")
    press("Enter")
    explorer.settle()
    assert explorer.patches()[0] == 1
    press("Escape")
    explorer.settle()
    assert explorer.patches() is None
    assert explorer.readout() == "No patch is chosen."


def test_views_and_options(explorer: Explorer) -> None:
    page = explorer.page

    def colours(name: str) -> set[str]:
        page.get_by_role("radio", name=name).check(force=True)
        explorer.settle()
        return set(page.evaluate("[...explorer.boards[0].tiles[0].colours]"))

    similarity, components = colours("Similarity"), colours("PCA")
    assert len(components) > 10
    assert similarity != components
    page.keyboard.press("Escape")
    counts = []
    colours("Clusters")
    for clusters in (2, 5):
        page.get_by_label("k-means").fill(str(clusters))
        explorer.settle()
        assert page.locator("output").inner_text() == str(clusters)
        counts.append(page.evaluate("new Set(explorer.boards[1].clustersFor(explorer.state.clusters)).size"))
    assert counts == [2, 5]
    colours("Similarity")
    page.mouse.click(*explorer.point(0, 0, 0.5, 0.5))
    page.get_by_role("checkbox", name="Matches").uncheck()
    page.get_by_role("checkbox", name="Positives").uncheck()
    explorer.settle()
    assert page.locator(".lines circle").count() == 0
    assert page.locator(".marks .positive").count() == 0
    page.get_by_role("checkbox", name="Follow pointer").check()
    page.mouse.move(*explorer.point(1, 2, 0.1, 0.9))
    explorer.settle()
    assert explorer.patches() == [2, 3, 0, 1, 1]


def test_a_match_can_be_asked_for(explorer: Explorer) -> None:
    match = explorer.page.evaluate("explorer.boards[1].matches[0]")
    explorer.page.locator(".board >> nth=1 >> .matches button >> nth=0").click()
    explorer.settle()
    image, row, column, *_ = explorer.patches(1)
    assert image == match["image"]
    assert row * {0: 16, 1: 8, 2: 8}[image] + column == match["patch"]


def test_every_part_has_a_role_and_a_name(explorer: Explorer) -> None:
    page = explorer.page
    for name in ("wide.png", "tall.png", "</script><b>.png"):
        assert page.get_by_role("application", name=f"{name}, coarse").count() == 1
    assert page.get_by_role("region", name="fine").count() == 1
    assert page.get_by_role("radio").count() == 4
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    assert page.get_by_role("list", name="Best matches in other images, fine").get_by_role("button").count() == 2


def test_touch_on_a_narrow_screen(browser: Any, page: Path) -> None:
    explorer = Explorer(browser, page, has_touch=True, is_mobile=True)
    explorer.page.set_viewport_size({"width": 390, "height": 844})
    explorer.page.touchscreen.tap(*explorer.point(1, 0, 0.6, 0.6))
    explorer.settle()
    assert explorer.patches(1) == [0, 4, 9, 1, 1]
    assert explorer.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert explorer.page.get_by_label("Drag selects").is_visible()
    explorer.page.context.close()
    assert not explorer.complaints
