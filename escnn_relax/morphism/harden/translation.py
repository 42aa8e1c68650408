"""Layers that may break translations, without the pathways that were switched off."""

from __future__ import annotations

from collections.abc import Mapping

from escnn.nn import EquivariantModule
from torch import nn

from ...errors import UnsupportedModuleError, naming
from ...nn.translation.relaxed_translation import CONVOLUTION, RelaxedTranslation
from ...symmetry.groups.lattice import Subgroup, subgroup
from ..module_tree import copy_module, replace_modules
from .layer_report import HardenedLayer
from .merged_layer import can_merge, merge_kernels

__all__ = ["harden_translation", "inside", "only_living", "refuse_living"]


def inside(name: str) -> str:
    """The name of the convolution in a :class:`~escnn_relax.nn.RelaxedTranslation` of this name."""
    return f"{name}.{CONVOLUTION}" if name else CONVOLUTION


def harden_translation(
    title: str,
    layer: RelaxedTranslation,
    convolution: EquivariantModule,
    energy: float,
    determined: float,
    merge: bool = True,
) -> tuple[EquivariantModule, HardenedLayer]:
    """A layer with this convolution, to be used up, and with the pathways that are not switched off.

    Args:
        merge: make sparse kernels that stay one with the convolution.
    """
    with naming(title or type(layer).__name__):
        off, removed = layer.switched_off(energy, determined)
    on = tuple(name for name in layer.sites if name not in off)
    kernels = [name for name in on if name in layer.stationary()] if merge and can_merge(convolution) else []
    if kernels:
        convolution = merge_kernels(convolution, [layer.sites[name] for name in kernels])
    new = layer.reduced(convolution, [name for name in on if name not in kernels])
    return new, HardenedLayer(title, tuple(n for n in layer.sites if n in off), on, removed, type(new).__name__)


def only_living(model: nn.Module, energy: float, determined: float) -> tuple[nn.Module, tuple[HardenedLayer, ...]]:
    """A copy without the pathways beside convolutions that were switched off; the convolutions stay as they are."""
    records: list[HardenedLayer] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, RelaxedTranslation):
            return None
        new, record = harden_translation(name, module, copy_module(module.convolution), energy, determined, merge=False)
        records.append(record)
        return new

    return replace_modules(model, replacement), tuple(records)


def refuse_living(model: nn.Module, subgroups: Mapping[str, Subgroup], everywhere: bool) -> None:
    """Refuse pathways beside convolutions that cannot be part of a network on subgroups.

    Args:
        subgroups: that of each relaxed convolution by its name, in the order of the model.
        everywhere: whether the rest of the network is restricted to these, too.

    Raises:
        UnsupportedModuleError: a layer with pathways that break its subgroup, or with any where that is not G.
    """
    current = next(iter(subgroups.values()), None) if everywhere else None
    for name, module in model.named_modules():
        current = subgroups.get(name, current) if everywhere else None
        if not isinstance(module, RelaxedTranslation):
            continue
        chosen = subgroups.get(inside(name), current)
        with naming(name):
            demanded = None if chosen is None else subgroup(module.space, chosen.id)
        groups = {n: pathway.subgroup for n, pathway in module.sites.items()}
        if (demanded is None or demanded.index == 1) and all(group.index == 1 for group in groups.values()):
            continue
        whole = module.space.fibergroup.name if demanded is None else demanded.name
        broken = any(group.index > 1 if demanded is None else not demanded <= group for group in groups.values())
        with naming(name or type(module).__name__):
            energies = module.energies()
        raise UnsupportedModuleError(
            name or "model",
            "pathways beside its convolution are alive",
            expected=f"pathways that keep {whole}" if broken else f"none, since they have no counterpart on {whole}",
            got=", ".join(
                f"{n} with {energies[n]:.2g} of the energy, which keeps {group.name}" for n, group in groups.items()
            ),
            remedy=(
                "train on until they are switched off, pass a larger energy=, or harden without to=, which leaves them"
            ),
        )
