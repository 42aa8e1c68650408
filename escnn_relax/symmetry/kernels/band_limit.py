"""Which angular frequencies a layer admits on each ring, recovered from the kernels that it kept and left out: escnn
forgets the limit that it was given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from escnn.nn import EquivariantModule

from ... import _escnn
from ...errors import UnsupportedModuleError

__all__ = ["band_limit", "frequency_limit"]

#: Squared size of a sampled kernel up to which sampling made it vanish, so that its absence says nothing.
VANISHED = 1e-10


def band_limit(convolution: EquivariantModule, cutoff: Any = None) -> _escnn.Limit:
    """Largest angular frequency on each ring of an escnn convolution: ``((radius, frequency), ...)``.

    The elements that the layer kept and left out are compared with what the caller knows, escnn's own policies and a
    limit proportional to the radius first; failing these, the largest frequency kept on each ring is read off.

    Args:
        cutoff: the ``frequencies_cutoff`` that it was built with, where that is known.

    Raises:
        UnsupportedModuleError: a ``basis_filter`` that is no such limit, and so cannot be recovered.
    """
    expansion = convolution.basisexpansion
    points = torch.as_tensor(expansion.points, dtype=torch.float32)
    blocks = dict(_escnn.block_modules(expansion))
    elements = {pair: _escnn.elements(block) for pair, block in blocks.items()}
    active = {(radius, f) for members in elements.values() for radius, f, there in members if there}
    inactive = {pair: {(r, f) for r, f, there in members if not there} for pair, members in elements.items()}
    nonvanishing: dict[tuple[str, str], set[tuple[float, int]]] = {}

    def present(pair: tuple[str, str]) -> set[tuple[float, int]]:
        """Elements that were left out though they do not vanish: what sampling makes vanish says nothing about the
        limit."""
        if pair not in nonvanishing:
            sizes = _escnn.element_sizes(blocks[pair], points)
            members = zip(elements[pair], sizes)
            nonvanishing[pair] = {(r, f) for (r, f, there), size in members if not there and size > VANISHED}
        return nonvanishing[pair]

    def explains(limit: dict[float, int]) -> bool:
        if any(f > limit[r] for r, f in active):
            return False
        # sampled only where an element was left out that the limit admits, which takes long for large fields
        pairs = [pair for pair, members in inactive.items() if any(f <= limit[r] for r, f in members)]
        return not any(f <= limit[r] for pair in pairs for r, f in present(pair))

    rings, highest = [round(r, 6) for r in convolution._rings], int(convolution._maximum_frequency)
    proportional = (highest + 1e-9) / max(rings) if max(rings) > 0 else None
    policies = (_escnn.policy_limit(convolution, p) for p in (cutoff, *_escnn.policies(convolution), proportional))
    candidates = [dict(zip(rings, limit)) for limit in policies if limit is not None]
    candidates.append({r: max([f for q, f in active if math.isclose(q, r)], default=-1) for r in rings})
    for limit in candidates:
        if explains(limit):
            return tuple(limit.items())
    raise UnsupportedModuleError(
        type(convolution),
        "the layer's basis_filter is no limit on the frequency by radius, so relaxed kernels cannot share it",
        remedy="build the layer with frequencies_cutoff instead, or leave this layer out",
    )


def frequency_limit(layer: EquivariantModule) -> Callable[[float], int]:
    """Largest frequency on each ring of a convolution, as a function of the radius.

    The limit of :func:`band_limit` where the layer has one; else the largest frequency that it kept on each ring,
    which admits whatever its own filter admitted.
    """
    try:
        limit = _point_limit(layer) if _escnn.is_point_convolution(layer) else dict(band_limit(layer))
    except UnsupportedModuleError:
        limit = _largest_frequencies(layer)
    return lambda radius: limit[min(limit, key=lambda ring: abs(ring - radius))]


def _largest_frequencies(layer: EquivariantModule) -> dict[float, int]:
    limit = {round(r, 6): 0 for r in layer._rings}
    for _, block in _escnn.block_modules(_escnn.expansion(layer)):
        for e in block.get_basis_info():
            ring = round(e["radius"], 6)
            limit[ring] = max(limit.get(ring, 0), abs(e["irrep:frequency"]))
    return limit


def _point_limit(layer: EquivariantModule) -> dict[float, int]:
    """escnn's own policy (three times the radius), or one proportional to the radius, where it explains the layer."""
    highest, rings = int(layer._maximum_frequency), [round(r, 6) for r in layer._rings]
    for factor in (3.0, (highest + 1e-6) / max(rings) if max(rings) > 0 else 0.0):
        limit = {r: min(int(factor * r + 1e-9), highest) for r in rings}
        elements = [
            (f <= limit[radius], there)
            for _, block in _escnn.block_modules(_escnn.expansion(layer))
            for radius, f, there in _escnn.elements(block)
        ]
        if int(factor * max(rings) + 1e-9) == highest and all(inside == there for inside, there in elements):
            return limit
    return _largest_frequencies(layer)
