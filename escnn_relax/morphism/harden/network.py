"""``harden``: the network that was learned, without what was switched off, as plain modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload

from torch import nn

from ...errors import ArgumentError, UnsupportedModuleError, naming
from ...nn.evidence_record import DETERMINED
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.translation.relaxed_translation import RelaxedTranslation
from ...symmetry.decision import Decided, Decides
from ...symmetry.kernels.pathway import SWITCHED_OFF
from ..module_tree import copy_module, replace_modules
from ..trial_run import OUT_OF_CODE, tried
from .layer_report import HardenedLayer, HardeningReport
from .relaxed_layer import harden_relaxed
from .subgroups import to_subgroups
from .translation import harden_translation, inside

__all__ = ["harden", "HardenedLayer", "HardeningReport"]


@overload
def harden(
    model: nn.Module,
    *,
    to: None | str | Mapping[str, Any] | Decided = None,
    evidence: Decides | None = None,
    data: Iterable[Any] | None = None,
    per: str = "depth",
    energy: float = SWITCHED_OFF,
    determined: float = DETERMINED,
    example: Any = None,
    return_report: Literal[False] = False,
) -> nn.Module: ...


@overload
def harden(
    model: nn.Module,
    *,
    to: None | str | Mapping[str, Any] | Decided = None,
    evidence: Decides | None = None,
    data: Iterable[Any] | None = None,
    per: str = "depth",
    energy: float = SWITCHED_OFF,
    determined: float = DETERMINED,
    example: Any = None,
    return_report: Literal[True],
) -> tuple[nn.Module, HardeningReport]: ...


def harden(
    model: nn.Module,
    *,
    to: None | str | Mapping[str, Any] | Decided = None,
    evidence: Decides | None = None,
    data: Iterable[Any] | None = None,
    per: str = "depth",
    energy: float = SWITCHED_OFF,
    determined: float = DETERMINED,
    example: Any = None,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, HardeningReport]:
    r"""A copy of a relaxed model in which switched-off pathways are gone and the rest of each layer is one kernel.

    Residual pathways count as switched off, the weakest first, while their shares of the kernel's energy add up to no
    more than ``energy`` and, where an evidence has measured it, the fraction of their dimension that the data determine
    is no more than ``determined``. A layer left with its equivariant pathway becomes a plain :class:`escnn.nn.R2Conv`
    with the same weights; one that broke its symmetry becomes a :class:`~escnn_relax.nn.MergedConvolution`, one
    fixed-size kernel on the same field types. Of a :class:`~escnn_relax.nn.RelaxedTranslation` the pathways that were
    switched off go, and with the last of them all but the convolution; what its bias can say of their constants, the
    same everywhere and invariant under the group, is added to it, and the rest of these constants counts as energy of
    the pathway (:meth:`~escnn_relax.nn.RelaxedTranslation.energies`). Sparse kernels that stay become one with it,
    unless it is a mixture (:func:`~escnn_relax.merge` that first).

    Small shares can matter: a late layer that broke its symmetry may do so with 0.1 % of its energy. Larger values of
    ``energy`` return more layers to escnn; compare the outputs before and after. For each layer the kernel changes by
    at most :math:`\sqrt{e}\,|W|` with e its removed energy, which ``return_report`` tells.

    With ``to`` or ``evidence`` every layer becomes escnn's own of the subgroup H that was decided on, with H's
    coefficients and the kernel :math:`P_H W`, the nearest that is equivariant under H. The result is a plain escnn
    network that keeps H whatever it is trained on. Pathways that break translations are switched off before; of those
    that are still alive only such as keep G can stay, in a layer that keeps G.

    Args:
        to: what :func:`~escnn_relax.survivors`, :func:`~escnn_relax.report` or :func:`~escnn_relax.symmetry_test`
            returned, whose decisions are followed; or the subgroup of each relaxed layer by its name (ids, printed
            names or subgroups); or ``"stabiliser"``: what survivors or report last decided about these weights with
            this ``energy``, and where nothing was decided the largest subgroup that leaves no more than ``energy`` of a
            kernel. So the result is never at odds with a table printed just before.
        evidence: decide by this evidence of the model, as ``survivors(model, evidence, data=data)`` does.
        data: of ``evidence``.
        per: of ``to`` and ``evidence``. ``"depth"``: symmetry never grows with depth; the network is restricted from
            its input on, and again before each layer that keeps less (:func:`~escnn_relax.restrict` with
            ``from_layer``), so modules used on both sides of such a step, an activation shared by two layers say, need
            ``"network"``: one subgroup for all. Where branches of the network meet, decisions of this package let them
            step down together, before the first of them; a subgroup that you name for a layer is never changed.
            ``"layer"``: each layer its own, between fields of G as before.
        energy: largest share of a layer's energy that is removed (fraction).
        determined: largest fraction of effective dimension that is removed.
        example: an input of the model, or a tuple of arguments, as ``restrict`` takes it: with ``to`` or ``evidence``
            the order of the layers is that of a run on it, and the result is tried on it. Without one an input is made
            of the first field type; ``False`` for no trial. Where nothing of a kernel was removed, the result has to
            compute the same in eval mode; otherwise it only has to run (see :func:`~escnn_relax.relax`).
        return_report: return ``(model, report)``, with a :class:`HardeningReport` of what was done to each layer and
            why.

    Raises:
        UnsupportedModuleError: a model without any relaxed layer; with ``to``, a layer with living pathways beside its
            convolution that break its subgroup, or any where that is not G; a network that cannot be taken there, or
            whose result would not run, with the way out.
        DataError: NaN or infinite weights.
        ArgumentError: another ``to`` or ``per``, a layer that ``to`` leaves out, subgroups that grow with depth, data
            without an evidence, an evidence of another model or beside decisions, an example on which the model does
            not run.
        EmptyBasisError: a kernel outside the span of escnn's, of a layer with ``basis="pixel"``.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> relaxed = relax(enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields)))
    >>> hardened, done = harden(relaxed, return_report=True)
    >>> type(hardened[0]).__name__, done[0].removed
    ('R2Conv', ('irrep_1', 'irrep_2'))
    >>> print(done)
    0: R2Conv of C4, without irrep_1, irrep_2 (0.0e+00 of the energy)
    >>> _ = nn.init.normal_(relaxed[0].weights["irrep_2"])
    >>> on_c2 = harden(relaxed, to="stabiliser")
    >>> type(on_c2[0]).__name__, on_c2[0].in_type.gspace.fibergroup.name
    ('R2Conv', 'C2')
    """
    if per not in ("depth", "network", "layer"):
        raise ArgumentError(
            "per", expected="'depth', 'network' or 'layer'", got=repr(per), remedy="leave it out for 'depth'"
        )
    for name, value in (("energy", energy), ("determined", determined)):
        if not 0 <= value <= 1:
            raise ArgumentError(
                name, expected="a fraction in 0 ... 1", got=value, remedy="leave it out for the default"
            )
    if to is not None or evidence is not None or data is not None:
        result, records = to_subgroups(model, to, evidence, data, per, energy, determined, example)
    else:
        result, records = _without_dead(model, energy, determined, example)
    return (result, HardeningReport(tuple(records))) if return_report else result


def _without_dead(
    model: nn.Module, energy: float, determined: float, example: Any
) -> tuple[nn.Module, list[HardenedLayer]]:
    """A copy without the pathways that were switched off, tried on the example."""
    records: list[HardenedLayer] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, RelaxedTranslation):
            convolution: Any = replacement(inside(name), module.convolution)
            convolution = convolution or copy_module(module.convolution)
            new, record = harden_translation(name, module, convolution, energy, determined)
            records.append(record)
            return new
        if not isinstance(module, RelaxedConvolution):  # of mixtures see merge
            return None
        with naming(name or type(module).__name__):
            new, record = harden_relaxed(name, module, energy, determined)
        records.append(record)
        return new

    hardened: Any = replace_modules(model, replacement)
    if not records:
        raise UnsupportedModuleError(
            type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden"
        )
    whole = all(record.removed_energy == 0 for record in records)
    single = [record.name for record in records]
    remedy = f"keep the layers relaxed, or {OUT_OF_CODE}"
    return tried(model, hardened, example, "hardened", same=whole, single=single, remedy=remedy), records
