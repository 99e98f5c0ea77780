"""Labelled sets that cannot tell good features from bad ones."""

import numpy as np
from torch import Tensor

from selfpatch.evaluation.classification.dataset import LabelledImages
from selfpatch.evaluation.degenerate import all_cosines_equal, check_degenerate
from selfpatch.evaluation.sharding import share_of

ONE_CLASS = (
    "all {split} images are of one class, so that the accuracy does not depend on the features; use images of several "
    "classes"
)
UNSEEN_CLASS = (
    "a class of the test images has no training image, so that it is never predicted; add one, or leave the class out"
)
SCORES_EQUAL = (
    "the trained network gives all images the same scores (all cosines are equal), so that it tells no class from "
    "another; use a smaller --lr"
)


def check_classes(train: LabelledImages, test: LabelledImages) -> None:
    """Report splits of one class, and classes of the test images that no training image has."""
    for split, images in (("training", train), ("test", test)):
        check_degenerate(ONE_CLASS.format(split=split), len(np.unique(images.labels)) == 1)
    trained, tested = set(train.labels.tolist()), np.unique(test.labels).tolist()
    for i in share_of(len(tested)):
        check_degenerate(UNSEEN_CLASS, tested[i] not in trained, train.classes[tested[i]])


def check_scores(scores: Tensor) -> None:
    """Report scores [n, K] of a trained network that are the same for all images."""
    check_degenerate(SCORES_EQUAL, all_cosines_equal(scores))
