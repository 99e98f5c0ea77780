"""Losses of self-supervised learning as modules on plain tensors, for any training loop."""

from selfpatch.losses.aligned_contrast import AlignedContrastLoss
from selfpatch.losses.aligned_relations import AlignedRelationConfig, AlignedRelationLoss
from selfpatch.losses.center import Center
from selfpatch.losses.depth import SigLoss, gradient_log_loss, sig_loss
from selfpatch.losses.dino import DINOConfig, DINOLoss
from selfpatch.losses.distill import (
    ImageSimilarityLoss,
    PatchDistillationConfig,
    PatchDistillationLoss,
    PatchSimilarityLoss,
)
from selfpatch.losses.gram import GramConfig, GramLoss
from selfpatch.losses.ibot import IBOTConfig, IBOTPatchLoss, PatchPrototypes
from selfpatch.losses.info_nce import DenseContrastLoss, InfoNCELoss
from selfpatch.losses.koleo import KoLeoConfig, KoLeoLoss
from selfpatch.losses.leopart import LeopartConfig, LeopartHead, LeopartLoss
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.losses.neco import NeCoConfig, NeCoLoss
from selfpatch.losses.paka import PaKALoss
from selfpatch.losses.selfpatch import SelfPatchConfig, SelfPatchLoss
from selfpatch.losses.sere import SEREChannelLoss, SEREConfig, SERELoss, SERESpatialLoss
from selfpatch.losses.swav import SwAVConfig, SwAVHead, SwAVLoss
from selfpatch.models.heads import PrototypeHead

__all__ = [
    "AlignedContrastLoss", "AlignedRelationConfig", "AlignedRelationLoss", "Center", "DINOConfig", "DINOLoss",
    "DenseContrastLoss", "GramConfig", "GramLoss", "IBOTConfig", "IBOTPatchLoss", "ImageSimilarityLoss", "InfoNCELoss",
    "KoLeoConfig", "KoLeoLoss", "LeopartConfig", "LeopartHead", "LeopartLoss", "MemoryBank", "NeCoConfig", "NeCoLoss",
    "PaKALoss", "PatchDistillationConfig", "PatchDistillationLoss", "PatchPrototypes", "PatchSimilarityLoss",
    "PrototypeHead", "SEREChannelLoss", "SEREConfig", "SERELoss", "SERESpatialLoss", "SelfPatchConfig", "SelfPatchLoss",
    "SigLoss", "SwAVConfig", "SwAVHead", "SwAVLoss", "gradient_log_loss", "sig_loss",
]  # fmt: skip
