"""Images whose object is arbitrary, and the setting that changes it."""

from selfpatch.evaluation.degenerate import check_degenerate
from selfpatch.evaluation.object_discovery.config import Method
from selfpatch.ops.discovery import DiscoveredObject, Flaw


def _of_graph(method: str, tau: str) -> dict[Flaw, str]:
    """Return the clauses on a graph of patches that a normalised cut cannot cut, for a method and its option."""
    return {
        "complete": (
            f"nearly all pairs of patches have a cosine above tau, so that {method}'s object is arbitrary; use "
            "--tau-quantile 0.4, --facet token or --centre"
        ),
        "sparse": (
            f"nearly no pair of patches has a cosine above tau, so that {method}'s object is arbitrary; use a lower "
            f"{tau} or --tau-quantile"
        ),
    }


FLAWS: dict[Method, dict[Flaw, str]] = {
    "lost": {
        "complete": (
            "nearly all pairs of patches are similar to LOST (their product is above 0), so that its object is "
            "arbitrary, often the whole image; use --centre or --facet token"
        ),
        "sparse": (
            "nearly no patch is similar to another for LOST (their product is above 0), so that its object is "
            "arbitrary; use other features, e.g. --facet token"
        ),
    },
    "tokencut": _of_graph("TokenCut", "--tau"),
    "maskcut": _of_graph("MaskCut", "--maskcut-tau"),
    "attention": {
        "uniform": (
            "the class token attends to all patches alike, so that the attention box is arbitrary; use another --block "
            "or --head, or --methods tokencut"
        ),
        "single": (
            "one patch holds the attention that is kept, so that the attention box is this patch; use a larger --mass "
            "or another --head"
        ),
    },
}
"""Clause for the result, by method and flaw."""


def check_object(method: Method, found: DiscoveredObject, image: str) -> None:
    """Report an image whose object is arbitrary."""
    for flaw, what in FLAWS[method].items():
        check_degenerate(what, found.flaw == flaw, image)
