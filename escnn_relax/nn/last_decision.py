"""The last decision about a model's layers, kept with them while their weights are what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from ..symmetry.decision import Decisions

__all__ = ["remember", "remembered"]


def remember(layers: Mapping[str, Any], decisions: Decisions) -> Decisions:
    """Keep a record with the layers that it is about, by name; it is no part of the state dict."""
    records = {name: (decisions, fingerprint(layer)) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.__dict__["_decided"] = records[name]
    return decisions


def remembered(layers: Mapping[str, Any]) -> Decisions | None:
    """The record that all these layers have in common, ``None`` where there is none or a weight has changed since.

    >>> remembered({}) is None
    True
    """
    known = [layer.__dict__.get("_decided") for layer in layers.values()]
    if not known or any(k is None for k in known):
        return None
    first = known[0][0]
    if set(first) != set(layers) or any(k[0] is not first for k in known):
        return None
    return first if all(k[1] == fingerprint(layer) for k, layer in zip(known, layers.values())) else None


def fingerprint(layer: Any) -> str:
    """Of the layer's weights, bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(dict(layer.weights.items()).items()):
        values = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
