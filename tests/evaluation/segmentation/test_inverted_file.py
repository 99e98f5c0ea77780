"""Search by FAISS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.evaluate import evaluate
from selfpatch.evaluation.segmentation.inverted_file import InvertedFile
from selfpatch.evaluation.segmentation.knn import PatchMemory
from selfpatch.ops.knn import nearest_neighbours
from tests.helpers.block_images import write_blocks


def test_without_faiss_nothing_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    config = SegmentationConfig.from_settings({"method": "knn", "search": "faiss"})
    with pytest.raises(
        ValueError, match=r"search faiss needs FAISS; install it with: pip install 'selfpatch\[faiss\]'"
    ):
        evaluate(MeanColour(4), write_blocks(tmp_path / "blocks"), config)


def test_most_neighbours_are_found_and_votes_hardly_differ() -> None:
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(40, 16))
    keys = F.normalize(centres[torch.randint(40, (20_000,))] + 0.2 * torch.randn(20_000, 16))
    queries, labels = centres + 0.2 * torch.randn(40, 16), torch.rand(20_000, 3)
    _, exact = nearest_neighbours(queries, keys, 30)
    similarity, found = InvertedFile(keys).nearest(queries, 30)
    torch.testing.assert_close(similarity, (F.normalize(queries) * keys[found].movedim(1, 0)).sum(-1).T)
    assert sum(len({*a.tolist()} & {*b.tolist()}) for a, b in zip(exact, found, strict=True)) > 0.9 * exact.numel()
    few = F.normalize(torch.randn(30, 16))  # one list, so that nothing is missed
    plain, fast = (
        PatchMemory(few, labels[:30], k=5, temperature=0.1, approximate=approximate).votes(queries)
        for approximate in (False, True)
    )
    torch.testing.assert_close(fast, plain)
