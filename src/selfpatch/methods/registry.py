"""Tables of the methods and objectives by the names that settings use. A new one is a file and a row."""

from collections.abc import Mapping

from selfpatch.core.types import Objective
from selfpatch.methods.image.densecl import DenseCL
from selfpatch.methods.image.dino import DINO
from selfpatch.methods.image.ibot import IBOT
from selfpatch.methods.image.moby import MoBY
from selfpatch.methods.image.moco_v2 import MoCoV2
from selfpatch.methods.image.moco_v3 import MoCoV3
from selfpatch.methods.image.swav import SwAV
from selfpatch.methods.patch.distill import Distill
from selfpatch.methods.patch.gram import Gram
from selfpatch.methods.patch.koleo import KoLeo
from selfpatch.methods.patch.leopart import Leopart
from selfpatch.methods.patch.neco import NeCo
from selfpatch.methods.patch.pairs import PaKA, SelfPatchPairs, SEREPairs
from selfpatch.methods.patch.retain import Retain
from selfpatch.methods.patch.selfpatch import SelfPatch
from selfpatch.methods.patch.sere import SERE

METHODS: dict[str, type[Objective]] = {
    "dino": DINO,
    "ibot": IBOT,
    "moco_v3": MoCoV3,
    "moby": MoBY,
    "moco_v2": MoCoV2,
    "swav": SwAV,
    "densecl": DenseCL,
}
"""Image-level methods, `--method`."""

OBJECTIVES: dict[str, type[Objective]] = {
    "selfpatch": SelfPatch,
    "sere": SERE,
    "paka": PaKA,
    "selfpatch_pairs": SelfPatchPairs,
    "sere_pairs": SEREPairs,
    "neco": NeCo,
    "koleo": KoLeo,
    "leopart": Leopart,
    "gram": Gram,
    "distill": Distill,
    "retain": Retain,
}
"""Patch-level objectives, `--objective`."""


def find_objective(table: Mapping[str, type[Objective]], name: str, kind: str) -> type[Objective]:
    """Return the class behind a name of a table; raise ValueError if it has none."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; use one of: {', '.join(sorted(table))}, none")
    return table[name]
