"""Replay of position debiasing: INSID3's subspace of a blank image, and RASA's layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from selfpatch.ops.debias import position_basis, predict_positions, remove_position_layers, remove_positions
from tests.parity.check import TIGHT, Check, compare


def replay_debiasing(bundle: Path) -> Iterator[Check]:
    """Compare the projector, debiased features of both kinds, and predicted positions."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    basis = position_basis(t["blank_image_features"][0].movedim(0, -1), expected["components"])
    projector = torch.eye(len(basis)) - basis @ basis.mT  # the basis itself has no sign
    yield compare("projector", projector, t["projector"], TIGHT)
    debiased = remove_positions(t["features"].movedim(1, -1), basis)
    yield compare("debiased features", debiased.movedim(-1, 1), t["debiased"], TIGHT)
    features, layers = t["rasa.features"], t["rasa.layers"]
    yield compare("RASA: debiased features", remove_position_layers(features, layers), t["rasa.debiased"], TIGHT)
    positions = predict_positions(features, layers[-1])
    yield compare("RASA: predicted positions", positions, t["rasa.predicted_positions"], TIGHT)
