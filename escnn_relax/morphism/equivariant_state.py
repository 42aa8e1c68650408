"""The equivariant part of a relaxed network, as a checkpoint of the strict one."""

from __future__ import annotations

from torch import Tensor, nn

from .project import project

__all__ = ["equivariant_state"]

#: What escnn's layers keep or not, depending on the mode they were last put into.
DERIVED = ("filter", "matrix", "expanded_bias")


def equivariant_state(model: nn.Module, like: nn.Module | None = None) -> dict[str, Tensor]:
    """State dict of the strict network that is left when all residual pathways are dropped.

    The way there needs no function: ``relaxed.load_state_dict(strict.state_dict())``, after which the residual weights
    are zero.

    Args:
        model: a network that ``relax`` made.
        like: the strict network that is to load it. escnn's state dicts differ between train and eval mode in the
            entries that are derived from the weights; given the network, those it has are there, and no others.

    Raises:
        RelaxError: what :func:`~escnn_relax.project` raises for layers that have no strict part.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> strict = enn.R2Conv(*(enn.FieldType(space, [space.regular_repr]),) * 2, kernel_size=3)
    >>> relaxed = relax(strict)
    >>> strict.load_state_dict(equivariant_state(relaxed, like=strict))
    <All keys matched successfully>
    """
    plain = project(model, example=False).eval()  # eval: only then are the derived entries those of the weights
    state = {k: v.contiguous() for k, v in plain.state_dict().items()}  # escnn's kernels may lie in another order
    if like is not None:
        known = like.state_dict()
        state = {k: v for k, v in state.items() if k in known or k.rsplit(".", 1)[-1] not in DERIVED}
    return state
