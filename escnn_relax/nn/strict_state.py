"""A strict layer's entries of a state dict, read by the relaxed layer that was, or could have been, made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _escnn
from ..symmetry.kernels.pathway import EQUIVARIANT
from .kernels.pathway_sum import Block

__all__ = ["SAME_SPAN", "VERSION", "read_strict_state"]

#: Of the layout of a relaxed layer's state dict; raised when an entry changes its name or its meaning.
VERSION = 2

#: Largest relative residual of kernels that span the same space: escnn samples them in float32.
SAME_SPAN = 1e-4

#: What escnn derives from the weights, and keeps or not by the mode that the layer was last in.
DERIVED = ("filter", "matrix", "expanded_bias")


def read_strict_state(layer: Any, state: dict[str, Any], prefix: str, missing: list[str]) -> str | None:
    """Rewrite, in place, the entries that an escnn layer left under ``prefix`` as those of ``layer``.

    The weights become those of the equivariant pathway and all residual ones zero, so the layer computes what the escnn
    layer did. escnn's sampled kernels replace the layer's own, since some of their signs differ between machines, after
    it has been checked that they span the same space. An entry that a relaxed layer wrote, of this version or an
    earlier one, is left as it is, but for records that it did not yet have.

    Args:
        layer: a :class:`~escnn_relax.nn.steerable.SteerableConvolution`.
        missing: keys that are not there are added.

    Returns:
        what is wrong with the entries, in words, or ``None``.
    """
    expansion, weights = f"{prefix}_basisexpansion.", f"{prefix}weights"
    if weights not in state and not any(key.startswith(expansion) for key in state):
        for name in ("log_precision", "effective_dimension"):
            if any(key.startswith(f"{weights}.") for key in state):
                state.setdefault(prefix + name, torch.full_like(getattr(layer, name), torch.nan))
        return None
    for name in DERIVED:
        state.pop(prefix + name, None)
    for pathway in layer.pathways:
        state[f"{weights}.{pathway.name}"] = torch.zeros_like(layer.weights[pathway.name])
    if weights not in state:
        missing.append(weights)
    state[f"{weights}.{EQUIVARIANT.name}"] = state.pop(weights, layer.weights.data)
    for name, present in layer.state_dict().items():  # kernels, records and whatever else escnn's layer has not
        if not name.startswith(("weights.", "bias")):
            value = (
                torch.full_like(present, torch.nan)
                if name in ("log_precision", "effective_dimension")
                else present.detach()
            )
            state[prefix + name] = value
    problem = None
    for block in layer.kernel.blocks.get(EQUIVARIANT.name, ()):
        key = f"{expansion}{_escnn.block_name(block.in_name, block.out_name)}.sampled_basis"
        stored = state.pop(key, None)
        if stored is None:
            missing.append(key)
        else:
            problem = _adopt_kernels(layer, block, stored, state, prefix) or problem
    for key in [
        k for k in state if k.startswith(expansion) and k.rsplit(".", 1)[-1].startswith(("in_indices", "out_indices"))
    ]:
        del state[key]  # derived from the field types
    return problem


def _adopt_kernels(layer: Any, block: Block, stored: Tensor, state: dict[str, Any], prefix: str) -> str | None:
    known: Tensor = layer.kernel.basis(block)
    pair = f"{prefix or 'layer '}kernels from {block.in_name} to {block.out_name}"
    if stored.shape != known.shape:
        return f"{pair}: shape {tuple(stored.shape)} in the strict state, {tuple(known.shape)} here"
    key = f"{prefix}kernel.bases.{layer.kernel.pairs.index((block.in_name, block.out_name))}"
    theirs, ours = stored.detach().double().flatten(1).cpu(), known.detach().double().flatten(1).cpu()
    if not torch.allclose(theirs, ours, atol=SAME_SPAN * float(ours.abs().max())):
        residual = theirs - theirs @ torch.linalg.pinv(ours) @ ours
        if float(residual.norm()) > SAME_SPAN * float(theirs.norm()):
            return f"{pair} span another space than here; load the state into the strict network, then relax that"
    rows: Tensor = state[key].clone()
    rows[block.row : block.stop_row] = stored.to(rows)
    state[key] = rows
    return None
