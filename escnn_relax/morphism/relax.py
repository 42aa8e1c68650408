"""``relax``: a network whose layers may break their symmetry, as a copy of one whose layers may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import UnsupportedModuleError
from ..nn import RelaxedLinear, RelaxedR2Conv, RelaxedR2ConvTransposed, RelaxedR3Conv, RelaxedR3ConvTransposed
from .conversion import convert_layers
from .layer_selection import LayerPredicate, LayerSelection, layer_predicate
from .trial_run import OUT_OF_CODE, tried

__all__ = ["relax"]

_KINDS = (RelaxedR2Conv, RelaxedR3Conv, RelaxedLinear, RelaxedR2ConvTransposed, RelaxedR3ConvTransposed)
_RELAXED = {kind._strict: kind for kind in _KINDS}


def relax(
    model: nn.Module,
    *,
    relaxation: str = "graded",
    subgroups: Sequence[Any] | None = None,
    basis: str = "band-limited",
    frequencies: int | None = None,
    irreps: Sequence[Any] | None = None,
    layers: LayerSelection = None,
    example: Any = None,
) -> nn.Module:
    """A copy of an escnn model whose steerable convolutions are relaxed; function, weights and types stay the same.

    Args:
        model: any module tree that holds escnn modules, with any Python in its ``forward``.
        relaxation, subgroups, basis, frequencies, irreps: see :class:`~escnn_relax.nn.RelaxedR2Conv`.
        layers: names of the layers to relax (as in ``model.named_modules()``), or a function of name and module;
            every steerable convolution, transposed convolution and linear layer by default.
        example: an input of the model, or a tuple of arguments, on which the result is tried before it is returned, see
            below; ``False`` for no trial.

    Raises:
        UnsupportedModuleError: nothing to relax, a layer whose band limit cannot be recovered, a sparse convolution
            that ``layers`` does not leave out, or a result that would not run or not compute the same, with the layer.
        SubgroupError: a subgroup that some layer's group does not have.
        ArgumentError: a name in ``layers`` that is no such layer, an irrep that some layer's group does not have, a
            negative cutoff, or an example on which the model does not run.
        ReflectionAxisError: a layer on O(2) that escnn built with the kernels of another reflection axis.
        EmptyBasisError: a subgroup that adds nothing to a layer; leave that layer out by ``layers``.

    Layers on the trivial group are left as they are, unless there are no others: then they become layers with the
    equivariant pathway only. A layer between whose types no kernel breaks the symmetry is left as it is, with a
    warning, and so is a user's subclass of an escnn layer. Weights tied between two layers become separate ones.

    The result is run beside the model before it is returned, on copies of both: on the example, or on a small input
    made of the first layer's type; where the model itself does not run on that, nothing is tried. In eval mode it has
    to compute the same. In training mode both run a second time. That takes as long as two to four forward passes of
    two small images. Hooks of your own are left out where it runs without them; what a forward does outside its model,
    such as printing, it does then, too.

    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> strict = enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields))
    >>> relaxed = relax(strict)
    >>> [p.name for p in relaxed[0].pathways]
    ['equivariant', 'irrep_1', 'irrep_2']
    """
    known = {name: module for name, module in model.named_modules() if type(module) in _RELAXED}
    chosen = layer_predicate(layers, known, "layer that can be relaxed", _with_symmetry(model))
    options: dict[str, Any] = {"relaxation": relaxation, "subgroups": subgroups, "basis": basis}
    options.update(frequencies=frequencies, irreps=irreps)
    copied, converted = convert_layers(model, _RELAXED, lambda name, module: options if chosen(name, module) else None)
    if not converted:
        raise UnsupportedModuleError(
            type(model).__name__,
            "no layer in it can be relaxed",
            expected=f"at least one of {', '.join(k.__name__ for k in _RELAXED)}",
            remedy="build the model with escnn convolutions that have a symmetry to relax",
        )
    remedy = f"leave the layer out by layers=, or {OUT_OF_CODE}"
    relaxed: nn.Module = tried(model, copied, example, "relaxed", single=converted, remedy=remedy)
    return relaxed


def _with_symmetry(model: nn.Module) -> LayerPredicate:
    """Layers whose group is not trivial; where there are none, all: they get the equivariant pathway only."""
    spaces: list[Any] = [module.space for module in model.modules() if type(module) in _RELAXED]
    trivial = all(space.fibergroup.order() == 1 for space in spaces)
    return lambda name, module: trivial or module.space.fibergroup.order() != 1
