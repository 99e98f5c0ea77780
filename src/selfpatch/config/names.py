"""Names of methods, objectives and models, which the command line checks before it imports what they stand for.

`methods.registry` and `models.backbones.build` hold the tables behind the names.
"""

METHODS = ("dino", "ibot", "moco_v3", "moby", "moco_v2", "swav", "densecl")
"""Image-level methods."""

OBJECTIVES = (
    "selfpatch", "sere", "paka", "selfpatch_pairs", "sere_pairs", "neco", "koleo", "leopart", "gram", "distill",
    "retain",
)  # fmt: skip
"""Patch-level objectives."""

MODELS = (
    "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant", "vit_small_dinov3", "vit_base_dinov3",
    "vit_large_dinov3", "swin_tiny", "swin_small", "swin_base", "resnet50", "convnext_tiny", "convnext_small",
    "convnext_base", "convnext_large",
)  # fmt: skip
"""Models that are built here; other names are models of timm."""
