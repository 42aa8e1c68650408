"""From an escnn model to one whose layers may break translation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from escnn.nn import EquivariantModule, GeometricTensor, R2Conv, R3Conv
from torch import Tensor, nn

from ..errors import ArgumentError, UnsupportedModuleError, layer_name, naming
from ..nn.translation.dense_pathway import DensePathway
from ..nn.translation.factored_pathway import FactoredPathway
from ..nn.translation.kernel_pathway import KernelPathway
from ..nn.translation.relaxed_translation import RelaxedTranslation
from ..nn.translation.signal_pathway import SignalPathway
from ..nn.translation.site_pathway import SitePathway
from ..nn.translation.sparse_convolution import SparseConvolution
from ..nn.translation.sparse_layers import SparseR2Conv, SparseR3Conv
from ..symmetry.grid.sites import largest_grid_subgroup
from ..symmetry.groups.lattice import subgroup as find_subgroup
from ..symmetry.groups.lattice import subgroups
from ..symmetry.groups.subgroup import Subgroup
from .layer_selection import LayerSelection, layer_predicate
from .layer_shapes import CONVOLUTIONS, layer_shapes
from .module_tree import copy_module, replace_modules
from .trial_run import OUT_OF_CODE, tried

__all__ = ["relax_translation"]

#: The class of each kind of pathway, and whether it has anchors.
KINDS: dict[str, tuple[type[SitePathway], bool]] = {
    "dense": (DensePathway, False),
    "factored": (FactoredPathway, False),
    "sparse": (FactoredPathway, True),
}

#: A convolution with a sparse kernel, of the layer's own geometry.
SPARSE_KERNEL = "sparse-kernel"


def relax_translation(
    model: nn.Module,
    example: Tensor | GeometricTensor | tuple[Any, ...],
    pathways: str | Sequence[str | tuple[Any, ...]] = "factored",
    *,
    fraction: float = 0.5,
    omega: float = 1.0,
    learn_omega: bool = False,
    average: bool = False,
    silent: bool = True,
    fitted: bool = False,
    seed: int = 0,
    layers: LayerSelection = None,
) -> nn.Module:
    """A copy of a model whose convolutions have pathways beside them, most of which break translation; the function
    stays the same.

    Combines with :func:`~escnn_relax.relax` and :func:`~escnn_relax.mix`, which come first: the convolution beside the
    pathways may itself be relaxed.

    Args:
        model: any module tree that holds steerable convolutions of the plane or of space.
        example: an input of the model, or a tuple of arguments, for the spatial sizes; the values do not matter. The
            result is tried on it before it is returned, on copies: it has to run and, where the function stays the
            same, to put out the same in eval mode. What a forward does outside its model, such as printing, it does
            then, too.
        pathways: what each convolution gets: ``"dense"`` (each site to each site), ``"factored"``
            (:class:`~escnn_relax.nn.FactoredPathway`) or ``"sparse"`` (factored, with anchors), which break
            translations; or ``"sparse-kernel"`` (a :class:`~escnn_relax.nn.KernelPathway`: a convolution of the layer's
            geometry with its kernel interpolated from anchors), which keeps them. A pair such as ``("factored",
            "free")`` says also what the pathway is equivariant under, about the centre: ``"group"`` (the largest finite
            subgroup that permutes the pixels, of the image or of the kernel; the default), ``"free"`` (nothing), or the
            id of a subgroup.
        fraction: anchors for each pixel, of the image or of the kernel (fraction), for ``"sparse"`` and
            ``"sparse-kernel"``.
        omega, learn_omega: inverse length scale of the interpolation (1 / pixels), and whether it is a parameter, which
            :func:`~escnn_relax.fit` moves up the evidence (:class:`~escnn_relax.nn.translation.anchors.Anchors`).
        average: divide by the number of summands; the function is another one then.
        silent: new pathways put out zeros; if not, they start with random weights, as published.
        fitted: weights at anchors start as the least-squares fit to those of a layer without anchors, as published.
        seed: of the anchors.
        layers: names of the layers, or a function of name and module; all by default.

    Raises:
        UnsupportedModuleError: no convolution in the model or chosen, a name that is no convolution, or one that the
            example does not reach, or reaches with two sizes; a result that would not run.
        ArgumentError: an unknown pathway, one asked for twice, or none; anchors that do not fit: more than there are
            pixels before or after the convolution, since they come in whole orbits; an example that a convolution does
            not take.
        SubgroupError: an id that names no subgroup, or one that does not permute the pixels.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> strict = enn.SequentialModule(enn.R2Conv(gray, fields, 3, padding=1), enn.ReLU(fields))
    >>> x = gray(torch.randn(2, 1, 8, 8))
    >>> relaxed = relax_translation(strict, x, ["factored", ("factored", "free")])
    >>> list(relaxed[0].sites)
    ['factored_C4', 'factored_free']
    >>> torch.equal(relaxed(x).tensor, strict(x).tensor)
    True
    """
    specified = [_specified(p) for p in ([pathways] if isinstance(pathways, str) else pathways)]
    if not specified:
        remedy = "pass a list, such as ['dense'] or [('factored', 'group')]"
        raise ArgumentError(
            "relax_translation",
            expected=f"pathways out of {[*KINDS, SPARSE_KERNEL]}",
            got=repr(pathways),
            remedy=remedy,
        )
    known = {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    if not known:
        remedy = "build the model with escnn's convolutions of the plane or of space"
        raise UnsupportedModuleError(type(model).__name__, "no convolution in it", remedy=remedy)
    chosen = layer_predicate(layers, known, "convolution")
    shapes = layer_shapes(model, example, chosen)
    relaxed: list[str] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, RelaxedTranslation):
            remedy = "pass the model before relax_translation"
            raise UnsupportedModuleError(name or "model", "its translations are relaxed already", remedy=remedy)
        if not isinstance(module, CONVOLUTIONS) or not chosen(name, module):
            return None
        where = name or type(module).__name__
        if isinstance(module, (R2Conv, R3Conv)) and not isinstance(module.padding, int):
            problem = f"escnn does not know its output's shape, expected one padding for all axes, got {module.padding}"
            raise UnsupportedModuleError(where, problem, remedy="relax the layer first")
        before, after = shapes[name]
        built: dict[str, SignalPathway] = {}
        with naming(where):
            for kind, keeps in specified:
                window = (module.kernel_size,) * module.d
                subgroup = _subgroup(module, keeps, *((window, window) if kind == SPARSE_KERNEL else (before, after)))
                title = f"{kind}_{'free' if subgroup.order == 1 else subgroup.name}"
                if title in built:
                    remedy = "name each pathway once"
                    raise ArgumentError(
                        type(module), f"the pathway {title!r} is asked for twice", got=list(pathways), remedy=remedy
                    )
                options: dict[str, Any] = {
                    "fraction": fraction,
                    "omega": omega,
                    "learn_omega": learn_omega,
                    "seed": seed,
                }
                if kind == SPARSE_KERNEL:
                    built[title] = KernelPathway(_sparse_kernel(module, subgroup, **options), before)
                else:
                    built[title] = _site_pathway(module, kind, before, after, subgroup, **options)
                built[title].reset_parameters(silent, fitted)
        layer = RelaxedTranslation(copy_module(module), before, built, average)
        layer.where = where
        relaxed.append(name)
        return layer.train(module.training)

    made = replace_modules(model, replacement)
    remedy = f"leave the layer out by layers=, or {OUT_OF_CODE}"
    same = silent and not average
    result: nn.Module = tried(model, made, example, "relaxed", same=same, single=relaxed, remedy=remedy)
    return result


def _specified(pathway: str | tuple[Any, ...]) -> tuple[str, object]:
    kind, keeps = (pathway, "group") if not isinstance(pathway, (tuple, list)) or len(pathway) != 2 else pathway
    if not isinstance(kind, str) or kind not in (*KINDS, SPARSE_KERNEL):
        expected = f"pathways out of {[*KINDS, SPARSE_KERNEL]}, or pairs of one and what it keeps"
        remedy = "pass a name, or (name, subgroup)"
        raise ArgumentError("relax_translation", expected=expected, got=repr(pathway), remedy=remedy)
    return kind, keeps


def _subgroup(module: EquivariantModule, keeps: object, before: tuple[int, ...], after: tuple[int, ...]) -> Subgroup:
    space = module.in_type.gspace
    if keeps == "free":
        return next(h for h in subgroups(space) if h.order == 1)
    if keeps == "group":
        largest = min((largest_grid_subgroup(space, shape) for shape in (before, after)), key=lambda h: h.order)
        if largest.order == 1:
            warnings.warn(
                f"{layer_name(type(module))}: only the trivial subgroup permutes the pixels of {before}", stacklevel=4
            )
        return largest
    return find_subgroup(space, keeps)


def _site_pathway(
    module: Any,
    kind: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    subgroup: Subgroup,
    fraction: float,
    **options: Any,
) -> SitePathway:
    make, anchored = KINDS[kind]
    options |= {"bias": module.bias is not None, "fraction": fraction if anchored else None}
    return make(module.in_type, module.out_type, before, after, subgroup, **options)


def _sparse_kernel(module: Any, subgroup: Subgroup, **options: Any) -> SparseConvolution:
    """A sparse convolution of a layer's geometry, without bias."""
    make = SparseR2Conv if module.d == 2 else SparseR3Conv
    names = ("kernel_size", "padding", "stride", "dilation", "padding_mode", "groups")
    geometry = {name: getattr(module, name) for name in names}
    return make(module.in_type, module.out_type, **geometry, bias=False, subgroup=subgroup.id, **options)
