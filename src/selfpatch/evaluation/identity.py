"""Hashes of networks and of the functions that encoders compute, by which trainings and features are told apart."""

import hashlib
from dataclasses import fields

import torch
from torch import Tensor, nn

from selfpatch.core.machine import current_versions
from selfpatch.core.types import Encoder
from selfpatch.models.backbones.config import BackboneConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.features import evaluating


def network_sha256(network: nn.Module) -> str:
    """Return a hash of a network's parameters and buffers: their sorted names, types, shapes and values.

    In a dry run there are no values.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.is_meta:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy() if values.numel() else b"")
    return digest.hexdigest()


def encoder_identity(encoder: Encoder) -> str:
    """Return a hash of the function that an encoder computes, to distinguish trainings on different encoders.

    For a network of this package, the hash covers its tensors (`network_sha256`), the mean and standard deviation of
    its input, whether patches are normed, and its architecture: no tensor shows the number of heads. For any other
    encoder, it covers its type, its tensors if it is a module, and its features of noise, whose rounding depends on the
    device.
    """
    digest = hashlib.sha256(f"{type(encoder).__name__} {list(encoder.mean)} {list(encoder.std)}\n".encode())
    if isinstance(encoder, BranchEncoder):
        digest.update(f"{encoder.normed_patches} {_architecture(encoder.backbone.config)} ".encode())
    if isinstance(encoder, nn.Module):
        digest.update(network_sha256(encoder).encode())
    if isinstance(encoder, BranchEncoder):
        return digest.hexdigest()
    digest.update(f"{encoder.patch_size}\n".encode())
    for features in _features_of_noise(encoder):
        digest.update(f"{list(features.shape)}\n".encode())
        digest.update(features.numpy().tobytes())
    return digest.hexdigest()


def function_identity(encoder: Encoder) -> str:
    """Return what identifies the function that an encoder without wrappers computes on its device.

    That is `encoder_identity`, its features of noise, its type of device, and the versions of the software.
    """
    parts = [encoder_identity(encoder), encoder.device.type, str(current_versions())]
    parts += [hashlib.sha256(features.numpy().tobytes()).hexdigest() for features in _features_of_noise(encoder)]
    return " ".join(parts)


def _architecture(config: BackboneConfig) -> list[str]:
    """Return the values of a configuration that are not defaults, so that a new setting leaves old hashes alone."""
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(config)}
    return [config.family, *(f"{name}={value!r}" for name, (value, default) in values.items() if value != default)]


@torch.no_grad()
def _features_of_noise(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Return patch and image features of a fixed image of noise of 4 x 4 patches, float32 on the CPU."""
    shape = (1, len(encoder.mean), 4 * encoder.patch_size, 4 * encoder.patch_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    with evaluating(encoder):  # dropout would draw
        return encoder.patches(noise).float().cpu(), encoder.image(noise).float().cpu()
