"""Which parameters of a model have a curvature, and why the others have none."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter

from ...errors import CoverageError, naming
from ...nn.mixed.kernel import MixtureKernel
from ...nn.translation.anchors import Anchors
from .known_layers import alike, linear_map, obstacle
from .linear_map import LinearMap

__all__ = ["Coverage", "LayerWeights", "check_built", "coverage", "join"]

#: What the layers that are known call their weights. Pruning, and norms of weights by hooks, put others in their place.
WEIGHTS = ("weight", "weights", "bias")


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Covered parameters of a layer, and all layers that use them: usually that one alone.

    Attributes:
        layer: the layer that the parameters are named after.
        parameters: their names within it, each with that in the model.
        users: the layers whose uses count, by name.
    """

    layer: str
    parameters: dict[str, str]
    users: tuple[str, ...]


@dataclass(frozen=True)
class Coverage:
    """What of a model is covered.

    Attributes:
        layers: the layers that use covered parameters, by name.
        weights: each covered parameter in one of them.
        parameters: names of the covered parameters, with their sizes.
        uncovered: names of all others, with the reason.
    """

    layers: dict[str, nn.Module]
    weights: tuple[LayerWeights, ...]
    parameters: dict[str, int]
    uncovered: dict[str, str]

    def linear_map(self, layer: str) -> LinearMap:
        """That of one of the layers, by its name; ``UnsupportedModuleError`` where it has none."""
        with naming(layer or type(self.layers[layer])):
            return linear_map(self.layers[layer])


def coverage(model: nn.Module, normalisation: bool = False) -> Coverage:
    """Look a model through; scales and shifts of batch normalisation only if asked for.

    Raises:
        CoverageError: nothing is covered, or a layer has no weights yet.
    """
    check_built(model)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    reasons, users = {}, {}
    for name, parameter in model.named_parameters():
        users[name] = _users(model, names[id(parameter)], normalisation)
        reasons[name] = _obstacle(model, name, users[name], normalisation)
    covered = {name: model.get_parameter(name).numel() for name, reason in reasons.items() if not reason}
    if not covered:
        first = next((f" ({name}: {reason})" for name, reason in reasons.items()), "")
        raise CoverageError("model", f"no layer whose curvature is known{first}", remedy="relax its convolutions first")
    weights: dict[tuple[str, ...], dict[str, str]] = {}
    for name in covered:
        layers = tuple(users[name])
        inside = name.removeprefix(f"{layers[0]}.") if layers[0] else name
        weights.setdefault(layers, {})[inside] = name
    using = {layer for layers in weights for layer in layers}
    return Coverage(
        {name: module for name, module in model.named_modules() if name in using},
        tuple(LayerWeights(layers[0], parameters, layers) for layers, parameters in weights.items()),
        covered,
        {name: reason for name, reason in reasons.items() if reason},
    )


def _users(model: nn.Module, names: list[str], normalisation: bool) -> dict[str, str]:
    """The layers that hold a parameter, each once, with its name within them; an unknown one under its module's
    name."""
    users, seen = {}, set()
    for name in names:
        layer = _layer(model, name, normalisation)
        if id(model.get_submodule(layer)) not in seen:
            seen.add(id(model.get_submodule(layer)))
            users[layer] = name.removeprefix(f"{layer}.") if layer else name
    return users


def _layer(model: nn.Module, name: str, normalisation: bool) -> str:
    """The known layer that a parameter belongs to: its module, or what holds it in a dictionary of parameters."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        if not obstacle(model.get_submodule(path), normalisation):
            return path
    return name.rpartition(".")[0]


def _obstacle(model: nn.Module, name: str, users: dict[str, str], normalisation: bool) -> str:
    """Why a parameter has no curvature; empty if it has."""
    if not model.get_parameter(name).requires_grad:
        return "frozen"
    holder = model.get_submodule(name.rpartition(".")[0])
    if isinstance(holder, MixtureKernel):
        return "an architecture weight: it has no prior"
    if isinstance(holder, Anchors):
        return "a length scale: it has no prior"
    attention = _attention(model, name)
    if attention:
        return f"{attention} uses it as a tensor, beside the layer that holds it"
    modules = {layer: model.get_submodule(layer) for layer in users}
    first, *others = modules
    kind = type(modules[first]).__name__
    for layer in modules:
        if problem := obstacle(modules[layer], normalisation):
            return problem if layer == first else f"the same parameter as {join(layer, users[layer])}, but {problem}"
    path = users[first].split(".")
    if path[0] not in WEIGHTS or "parametrizations" in path:
        return (
            f"no weight of {kind} itself: how the layer uses it (pruning, spectral norm, a parametrisation) is not"
            " known"
        )
    for layer in others:
        if users[layer] != users[first] or not alike(modules[first], modules[layer], users[first]):
            return f"the same parameter as {join(layer, users[layer])}, which another kind of layer uses"
    return ""


def _attention(model: nn.Module, name: str) -> str:
    """The kind of the attention of torch's that a parameter is in, whose forward calls none of its layers; empty if
    it is in none."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        if isinstance(model.get_submodule(path), nn.MultiheadAttention):
            return type(model.get_submodule(path)).__name__
    return ""


def check_built(model: nn.Module) -> None:
    """Raise ``CoverageError`` for a lazy layer that waits for its first input."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            problem = "a lazy layer, whose weights wait for the first input"
            raise CoverageError(name, problem, remedy="run the model once on a batch, before its optimiser is made too")


def join(layer: str, name: str) -> str:
    """A parameter's name in the model; the model itself, as a layer, has the empty name."""
    return f"{layer}.{name}" if layer else name
