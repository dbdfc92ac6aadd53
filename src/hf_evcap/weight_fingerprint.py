"""Identity of weights: which encoder made a memory's keys, which weights made captions and cached features."""

from __future__ import annotations

import hashlib

import torch


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """
    Fingerprint of weights: SHA-256 over names, shapes and 64 evenly spaced values of each tensor.

    Training moves every value of a tensor, so a sample tells encoders apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().reshape(-1)
        last = values.numel() - 1
        places = torch.linspace(0, last, steps=min(64, values.numel())).long().to(values.device)
        places = places.clamp(max=last)  # beyond 2^24 a float rounds up
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(values[places].float().cpu().numpy().astype("<f4").tobytes() if values.numel() else b"")
    return digest.hexdigest()


__all__ = ["hash_tensors"]
