"""``mix``: a network whose layers are mixtures over several groups; ``merge``: plain layers again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModuleError, naming
from ..nn.merged import MergedConvolution
from ..nn.mixed.convolution import MixedConvolution
from ..nn.mixed.layers import MixedLinear, MixedR2Conv, MixedR2ConvTransposed, MixedR3Conv, MixedR3ConvTransposed
from ..nn.strict_layer import strict_layer
from ..symmetry.kernels.pathway import EQUIVARIANT
from .conversion import convert_layers
from .layer_selection import LayerSelection, check_names, layer_predicate
from .module_tree import replace_modules
from .trial_run import OUT_OF_CODE, tried

__all__ = ["mix", "merge", "mixed_layers"]

_KINDS = (MixedR2Conv, MixedR3Conv, MixedLinear, MixedR2ConvTransposed, MixedR3ConvTransposed)
_MIXED = {kind._strict: kind for kind in _KINDS}

#: What error messages call these layers.
_KNOWN = "layer that can be mixed"

#: Which groups a layer mixes: the same for all, by the layer's name, or as a function of name and module says.
Choice = Sequence[Any] | Mapping[str, Sequence[Any]] | Callable[[str, nn.Module], Sequence[Any] | None]


def mix(
    model: nn.Module,
    subgroups: Choice,
    *,
    layers: LayerSelection = None,
    leaning: float = 0.0,
    temperature: float = 1.0,
    start: str = "strict",
    example: Any = None,
) -> nn.Module:
    """A copy of an escnn model whose steerable layers are [G]-mixed; the given one is left alone.

    With ``start="strict"`` the function stays the same: every summand starts as the layer's own equivariant kernel.

    Args:
        model: any module tree that holds escnn modules, with any Python in its ``forward``.
        subgroups: ids as ``gspace.restrict`` takes them, one list for all layers; or a mapping from a layer's name, or
            a function of name and module, to the layer's list. Layers that a mapping leaves out, or for which a
            function gives ``None``, stay as they are. G itself is always in a mixture.
        layers: which layers, where ``subgroups`` is one list: names or a function; all by default.
        leaning, temperature, start: see :class:`~escnn_relax.nn.mixed.mixture.Mixture`.
        example: an input of the model, or a tuple of arguments, on which the result is tried before it is returned, see
            below; ``False`` for no trial.

    Raises:
        SubgroupError: an id that some layer's group does not have, or one named twice.
        UnsupportedModuleError: nothing to mix, a sparse convolution that is not left out, or a result that would not
            run, or not compute the same, with the layer.
        ArgumentError: a name that is no such layer, or an example on which the model does not run.

    A layer in which all these groups have the same kernels stays as it is, with a warning; groups that coincide with a
    larger one are left out of that layer and named in its ``coinciding``. A user's subclass of an escnn layer stays as
    it is, with a warning. Weights tied between two layers become separate ones.

    The result is run beside the model before it is returned, on copies of both: on the example, or on a small input
    made of the first layer's type; where the model itself does not run on that, nothing is tried. With
    ``start="strict"`` it has to compute the same in eval mode. In training mode both run a second time. That takes as
    long as two to four forward passes of two small images. Hooks of your own are left out where it runs without them;
    what a forward does outside its model, such as printing, it does then, too.

    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> mixed = mix(enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields)), [2, 1])
    >>> mixed[0].group_names
    {'equivariant': 'C4', 'C2': 'C2', 'trivial': 'trivial'}
    """
    chosen = _chooser(model, subgroups, layers)
    options = {"leaning": leaning, "temperature": temperature, "start": start}

    def arguments(name: str, module: nn.Module) -> dict[str, Any] | None:
        ids = chosen(name, module)
        return None if ids is None else {"subgroups": ids, **options}

    copied, converted = convert_layers(model, _MIXED, arguments)
    if not converted:
        raise UnsupportedModuleError(
            type(model).__name__,
            "no layer in it was mixed",
            expected=f"at least one of {', '.join(k.__name__ for k in _MIXED)} with a symmetry to break",
            remedy="build the model with escnn convolutions, and name subgroups that they can tell apart",
        )
    remedy = f"leave the layer out by layers=, or {OUT_OF_CODE}"
    mixed: nn.Module = tried(model, copied, example, "mixed", same=start == "strict", single=converted, remedy=remedy)
    return mixed


def _chooser(model: nn.Module, subgroups: Choice, layers: LayerSelection) -> Callable[[str, Any], Sequence[Any] | None]:
    known = {name: module for name, module in model.named_modules() if type(module) in _MIXED}
    if isinstance(subgroups, Mapping):
        check_names(subgroups, known, _KNOWN)
        return lambda name, module: subgroups.get(name)
    if callable(subgroups):
        return subgroups
    chosen = layer_predicate(layers, known, _KNOWN, lambda name, module: module.space.fibergroup.order() != 1)
    return lambda name, module: subgroups if chosen(name, module) else None


def mixed_layers(model: nn.Module) -> dict[str, MixedConvolution]:
    """The mixed layers of a model by name, in its order; ``UnsupportedModuleError`` if there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MixedConvolution)}
    if not layers:
        problem = "no mixed layer in it"
        raise UnsupportedModuleError(type(model), problem, remedy="pass escnn_relax.mix(model, subgroups)")
    return layers


def merge(model: nn.Module, *, example: Any = None) -> nn.Module:
    """A copy of a model in which each mixed layer is one plain convolution with the same function.

    A layer whose only summand left is G's becomes the escnn layer with these weights, any other a
    :class:`~escnn_relax.nn.MergedConvolution` with one kernel, which keeps the symmetry it has but would lose it in
    further training: merge last.

    Args:
        example: an input of the model, or a tuple of arguments, on which the result is tried before it is returned, see
            below; ``False`` for no trial.

    Raises:
        UnsupportedModuleError: a model without mixed layers, or a result that would not run or not compute the same,
            with the layer.
        ArgumentError: an example on which the model does not run.

    The result is run beside the model before it is returned, on copies of both: on the example, or on a small input
    made of the first layer's type; where the model itself does not run on that, nothing is tried. In eval mode it has
    to compute the same. In training mode both run a second time. That takes as long as two to four forward passes of
    two small images. Hooks of your own are left out where it runs without them; what a forward does outside its model,
    such as printing, it does then, too.

    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> mixed = mix(enn.SequentialModule(enn.R2Conv(fields, fields, 3), enn.R2Conv(fields, fields, 3)), [2])
    >>> [type(layer).__name__ for layer in merge(mixed)]
    ['MergedConvolution', 'MergedConvolution']
    """
    with naming("merge"):
        mixtures = mixed_layers(model)
    layers = {id(layer) for layer in mixtures.values()}
    merged = replace_modules(model, lambda name, module: _merged(module) if id(module) in layers else None)
    result: nn.Module = tried(
        model, merged, example, "merged", single=list(mixtures), remedy=f"keep the layers mixed, or {OUT_OF_CODE}"
    )
    return result


def _merged(layer: Any) -> nn.Module:
    with torch.no_grad():
        if layer.pathways == (EQUIVARIANT,):
            new = strict_layer(layer)
        else:
            new = MergedConvolution.from_layer(layer, *layer.expand_parameters())
        new.train(layer.training)  # without gradients, or escnn's layer keeps a filter with a graph
    return new
