"""Clusters, or predicted classes, matched to classes by the pixels that they share."""

import numpy as np

from selfpatch.evaluation.segmentation.config import Matching


def classes_of_clusters(counts: np.ndarray, matching: Matching) -> np.ndarray:
    """Return the class of each cluster, [K] int64, by its pixels of each class, `counts` [C, K].

    ::

        one_to_one       the Hungarian matching that makes the most pixels right (IIC, PiCIE, STEGO)
        one_to_one_iou   the Hungarian matching of the largest sum of IoUs (Leopart, NeCo, open-hummingbird-eval)
        precision, iou   the class of the largest precision or IoU, so that clusters may share a class (Leopart)

    Ties go to the class of lowest number. A cluster without labelled pixels is of class 0 unless matched one to one.
    """
    if matching == "one_to_one":
        return _matched(counts)
    of_class, of_cluster = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    whole = of_cluster if matching == "precision" else of_class + of_cluster - counts
    scores = counts / np.maximum(whole, 1)
    return _matched(scores) if matching == "one_to_one_iou" else scores.argmax(0)


def _matched(scores: np.ndarray) -> np.ndarray:
    """Return the class of each cluster as [C] int64, one to one, of the largest sum of `scores` [class, cluster]."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and most methods match nothing

    classes, clusters = linear_sum_assignment(scores, maximize=True)
    matched = np.empty(scores.shape[1], np.int64)
    matched[clusters] = classes
    return matched
