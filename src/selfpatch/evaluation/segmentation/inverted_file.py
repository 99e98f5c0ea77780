"""Approximate search for neighbours by FAISS, for memories of millions of patches."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_LISTS, NUM_PROBED = 512, 32
"""Lists that the memory is divided into, and those of them that are searched for a query: the numbers of leaves of
ScaNN in open-hummingbird-eval."""
POINTS_PER_LIST = 39
"""Smallest number of keys for each list with which FAISS clusters without a warning."""


def load_faiss() -> Any:
    """Return the module faiss; ValueError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise ValueError("search faiss needs FAISS; install it with: pip install 'selfpatch[faiss]'") from None
    return faiss


class InvertedFile:
    """Keys in lists around centres, of which a query searches the nearest.

    The keys are copied, and searched on the CPU by as many threads as torch has.

    Args:
        keys: [n, D] of norm 1.
    """

    def __init__(self, keys: Tensor) -> None:
        faiss = load_faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        lists = max(1, min(NUM_LISTS, len(keys) // POINTS_PER_LIST))
        self._quantizer = faiss.IndexFlatIP(keys.shape[1])
        self.index = faiss.IndexIVFFlat(self._quantizer, keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        self.index.nprobe = min(NUM_PROBED, lists)
        values = keys.cpu().numpy()
        self.index.train(values)
        self.index.add(values)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the similarities and indices [m, k] of the keys found for queries [m, D], in descending order.

        A key that takes the place of one that was not found, because the lists held fewer than k, has a similarity of
        -1 and the index 0.
        """
        similarity, index = (
            torch.from_numpy(found).to(queries.device)
            for found in self.index.search(F.normalize(queries, dim=1).cpu().numpy(), k)
        )
        missing = index < 0
        return similarity.masked_fill(missing, -1.0), index.masked_fill(missing, 0)
