"""Lists of any bytes: each reader returns what the data set has, or refuses in one sentence; nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.classification.dataset import open_splits, with_labels
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.correspondence.dataset import open_pairs
from selfpatch.evaluation.depth.dataset import open_depth_splits
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.segmentation.dataset import open_dataset
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.dataset import open_clips

EXAMPLES = int(os.environ.get("SELFPATCH_FUZZ", "60"))
NAMES = (
    b"a", b"b 1", b"a.jpg", b"a.png", b"a.tar", b"sub", b"list.txt", b"../a", b"/etc/hosts", b"C:\\a", b"..", b".",
    b"a.jpg a.png 518.8", b"a.jpg\ta.png", b"b 1 -1", b"/JPEGImages/480p/a/00000.jpg x", b"a:cat", b"None", b"#", b"",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xdf", b"\x1b[2J", b"x" * 300, b"\xe2\x80\xa8", b"\r", b" ", b"\t", b"~",
)  # fmt: skip
"""Lines of which some stand for something in some layout."""
FILES = {
    "segmentation": ("val.txt", "images/a.jpg", "images/b 1.jpg", "labels/a.png", "labels/b 1.png", "classes.txt"),
    "davis": ("ImageSets/2017/val.txt", "JPEGImages/480p/a/00000.jpg", "Annotations/480p/a/00000.png"),
    "voc": ("ImageSets/Main/trainval.txt", "Annotations/a.xml", "JPEGImages/a.jpg", "JPEGImages/b 1.jpg"),
    "image_list": ("list.txt", "Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/trainval.txt"),
    "spair": ("Layout/large/test.txt", "PairAnnotation/test/a:cat.json"),
    "nyu": ("nyu_train.txt", "nyu_test.txt", "a.jpg", "a.png"),
    "labels": ("list.txt", "train/x/a.png", "train/y/b 1.png", "val/x/a.png"),
    "photographs": ("list.txt", "a.jpg", "sub/a.png"),
}
"""Files of each layout; the first is the list."""


def open_images_of_list(root: Path) -> Any:
    return open_images(root, ObjectDiscoveryConfig(image_list=str(root / "list.txt")))


OPEN: dict[str, Callable[[Path], Any]] = {
    "segmentation": lambda root: open_dataset(root, "val").images,
    "davis": lambda root: open_clips(root, DAVISConfig()),
    "voc": lambda root: open_images(root, ObjectDiscoveryConfig()),
    "image_list": open_images_of_list,
    "spair": lambda root: open_pairs(root, CorrespondenceConfig()),
    "nyu": lambda root: open_depth_splits(root, 1000.0),
    "labels": lambda root: with_labels(open_splits(root)[0], str(root / "list.txt"), 0),
    "photographs": lambda root: ImageIndex.open(root / "list.txt", root.parent / "cache"),
}
CONTENTS = {"classes.txt": "0 road\n", "a.xml": "<annotation/>", "trainval.txt": "a\n", "a:cat.json": "{}"}


@pytest.fixture(params=OPEN)
def layout(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, Path]:
    """Name, folder and list of a layout."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = request.param
    for file in FILES[name]:
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CONTENTS.get(path.name, ""))
    return name, tmp_path / "set", tmp_path / "set" / FILES[name][0]


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(NAMES) | st.binary(max_size=8), max_size=5), end=st.sampled_from([b"\n", b"\r\n"])
)
def test_a_list_is_read_or_refused(layout: tuple[str, Path, Path], lines: list[bytes], end: bytes) -> None:
    name, root, listed = layout
    listed.write_bytes(end.join(lines))
    before = sorted(root.rglob("*"))
    refusal, kind = "", None
    try:
        OPEN[name](root)
    except ValueError as error:
        refusal, kind = str(error), type(error)
    assert bool(refusal) == (kind is not None)
    assert "\n" not in refusal
    assert kind is None or not issubclass(kind, UnicodeError)  # whose message names no file
    assert sorted(root.rglob("*")) == before
