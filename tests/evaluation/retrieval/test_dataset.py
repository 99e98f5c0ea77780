"""The JSON file and its images, and the sentence for everything that can be wrong with them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfpatch.evaluation.retrieval.dataset import open_retrieval
from tests.evaluation.retrieval.conftest import TRUTHS, write_retrieval

CONVERT = (
    "import json, pickle, sys; "
    "json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'), default=lambda x: x.tolist())"
)


def test_images_boxes_and_numbers_are_read(tmp_path: Path) -> None:
    images = open_retrieval(write_retrieval(tmp_path))
    assert [path.name for path in images.database] == [f"image_{i}.png" for i in range(6)]
    first, second = images.queries
    assert (first.name, first.box, first.image.name) == ("query_0", (8.0, 8.0, 40.0, 32.0), "query_0.png")
    assert (first.easy.tolist(), first.hard.tolist(), first.junk.tolist()) == ([0], [1], [5])
    assert second.hard.tolist() == []


def test_the_documented_command_converts_the_published_file(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path / "data")
    record = json.loads((data / "gnd_tiny.json").read_text())
    (data / "gnd_tiny.json").unlink()
    for truth in record["gnd"]:
        truth |= {kind: np.array(truth[kind]) for kind in ("easy", "hard", "junk")}
    (data / "gnd.pkl").write_bytes(pickle.dumps(record))
    subprocess.run([sys.executable, "-c", CONVERT, str(data / "gnd.pkl"), str(data / "gnd.json")], check=True)
    assert open_retrieval(data).queries[0].easy.tolist() == [0]
    docs = Path(__file__).parents[3] / "docs" / "evaluations.md"
    assert CONVERT in docs.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"imlist": [*(f"image_{i}" for i in range(5)), "lost"]},
            "there is no image .*lost.jpg, which .*gnd_tiny.json names",
        ),
        ({"qimlist": ["query_0"]}, "has 6 images, 1 query and 2 entries in gnd"),
        ({"imlist": []}, "has 0 images, 2 queries"),
        ({"gnd": [{**TRUTHS[0], "easy": [6]}, TRUTHS[1]]}, "gives query_0 an image outside of 0 to 5"),
        ({"gnd": [{**TRUTHS[0], "easy": [-1]}, TRUTHS[1]]}, "gives query_0 an image outside of 0 to 5"),
        ({"gnd": [{**TRUTHS[0], "junk": [0]}, TRUTHS[1]]}, "gives query_0 an image twice"),
        ({"gnd": [{"easy": [0]}, TRUTHS[1]]}, "cannot be read as imlist, qimlist and gnd"),
        ({"gnd": [{**TRUTHS[0], "bbx": [9, 9, 9, 20]}, TRUTHS[1]]}, "cannot be read as imlist, qimlist and gnd"),
        ({"gnd": 3}, "cannot be read as imlist, qimlist and gnd"),
        ({"gnd": [{**TRUTHS[0], "easy": [0.5]}, TRUTHS[1]]}, "cannot be read as imlist, qimlist and gnd"),
        ({"gnd": [{**TRUTHS[0], "bbx": [0, 0, 1e999, 9]}, TRUTHS[1]]}, "cannot be read as imlist, qimlist and gnd"),
        ({"qimlist": ["query_0", "../query_1"]}, r"gnd_tiny.json names '../query_1', which leads out of its folder"),
        ({"imlist": ["/etc/hosts"] * 6}, "gnd_tiny.json names '/etc/hosts', which is an absolute path"),
        ({"imlist": [None] * 6}, r"gnd_tiny.json has the imlist\[0\] null; use text"),
    ],
)
def test_bad_data_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    data = write_retrieval(tmp_path)
    file = data / "gnd_tiny.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        open_retrieval(data)


def test_no_json_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 0 JSON files, .* made from gnd_\*.pkl"):
        open_retrieval(tmp_path / "nothing")
    data = write_retrieval(tmp_path / "data")
    (data / "more.json").write_text("{}")
    with pytest.raises(ValueError, match="has 2 JSON files"):
        open_retrieval(data)
    (data / "more.json").unlink()
    (data / "gnd_tiny.json").write_text("{")
    with pytest.raises(ValueError, match=r"gnd_tiny.json is not valid JSON"):
        open_retrieval(data)


def test_a_byte_order_mark_and_hidden_files_do_not_matter(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path)
    file = data / "gnd_tiny.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    (data / "._gnd_tiny.json").write_bytes(b"\0")
    assert len(open_retrieval(data).queries) == 2


def test_a_part_of_the_database(tmp_path: Path) -> None:
    images = open_retrieval(write_retrieval(tmp_path)).limited(3)
    assert [path.name for path in images.database] == ["image_0.png", "image_2.png", "image_5.png"]
    first, second = images.queries
    assert (first.easy.tolist(), first.hard.tolist(), first.junk.tolist()) == ([0], [], [2])
    assert second.easy.tolist() == [1]
