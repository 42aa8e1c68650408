"""Which parameters of a model have a curvature, and why the others have none."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import CoverageError
from ..nn.mixed_kernel import MixtureKernel
from ..nn.site_fields import Anchors
from .layers import obstacle

__all__ = ["Coverage", "coverage", "join"]


@dataclass(frozen=True)
class Coverage:
    """What of a model is covered.

    Attributes:
        layers: the layers with covered parameters, by name.
        parameters: names of the covered parameters, with their sizes.
        uncovered: names of all others, with the reason.
    """

    layers: dict[str, nn.Module]
    parameters: dict[str, int]
    uncovered: dict[str, str]

    def of(self, layer: str) -> list[str]:
        """Covered parameters of a layer, as the layer calls them."""
        return [n for n, _ in self.layers[layer].named_parameters() if join(layer, n) in self.parameters]


def coverage(model: nn.Module, normalisation: bool = False) -> Coverage:
    """Look a model through; scales and shifts of batch normalisation only if asked for.

    Raises:
        CoverageError: nothing is covered.
    """
    reasons = {name: _obstacle(model, name, normalisation) for name, _ in model.named_parameters()}
    covered = {name: model.get_parameter(name).numel() for name, reason in reasons.items() if not reason}
    if not covered:
        raise CoverageError("model", "no layer whose curvature is known", remedy="relax its convolutions first")
    layers = {
        name: module
        for name, module in model.named_modules()
        if not obstacle(module, normalisation) and any(join(name, n) in covered for n, _ in module.named_parameters())
    }
    return Coverage(layers, covered, {name: reason for name, reason in reasons.items() if reason})


def _obstacle(model: nn.Module, name: str, normalisation: bool) -> str:
    """Why a parameter has no curvature; empty if it has."""
    parameter = model.get_parameter(name)
    if not parameter.requires_grad:
        return "frozen"
    holder = model.get_submodule(name.rpartition(".")[0])
    if isinstance(holder, MixtureKernel):
        return "an architecture weight: it has no prior"
    if isinstance(holder, Anchors):
        return "a length scale: it has no prior"
    twins = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter and n != name]
    if len({id(model.get_submodule(n.rpartition(".")[0])) for n in (name, *twins)}) > 1:
        return f"the same parameter as {', '.join(twins)}"
    path = name
    while path:  # the layer is the parameter's module, or holds it in a dictionary of parameters
        path = path.rpartition(".")[0]
        if not obstacle(model.get_submodule(path), normalisation):
            return ""
    return obstacle(model.get_submodule(name.rpartition(".")[0]), normalisation)


def join(layer: str, name: str) -> str:
    """A parameter's name in the model; the model itself, as a layer, has the empty name."""
    return f"{layer}.{name}" if layer else name
