"""The order in which a network calls its layers, and what it feeds them: recorded on one example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from escnn.nn import EquivariantModule, GeometricTensor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layer import CONTAINERS

__all__ = ["Flow", "flow"]


@dataclass
class Flow:
    """One run of a network, seen from a boundary between its layers.

    Attributes:
        before, after: names of the layers called before the boundary, and from there on; a layer can be in both.
        fed: for each layer after the boundary that is fed what comes from before it, where that comes from.
        meetings: pairs of layers, before and after, whose outputs the network's own code brings together, and how.
    """

    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    fed: dict[str, str] = field(default_factory=dict)
    meetings: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def on_both_sides(self) -> list[str]:
        """Layers called on both sides."""
        return [name for name in dict.fromkeys(self.after) if name in self.before]


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose inside is not ours to look into: escnn's, and those without children."""
    inside: list[str] = []
    for name, submodule in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        field_module = isinstance(submodule, EquivariantModule) and not isinstance(submodule, CONTAINERS)
        if (field_module and not type(submodule).__module__.startswith("__") and _known(submodule)) or not list(
            submodule.children()
        ):
            inside.append(f"{name}.")
            yield name, submodule


def _known(submodule: nn.Module) -> bool:
    return type(submodule).__module__.split(".")[0] in ("escnn", __package__.split(".")[0])


def flow(model: nn.Module, boundary: str, run: Callable[[], Any]) -> Flow:
    """Run the network and record what happens on either side of a boundary.

    Args:
        boundary: name of the module before which the boundary lies.
        run: calls the network.
    """
    record = Flow()
    recorder = _Recorder(record)
    handles = []
    submodules = dict(model.named_modules())
    for name, submodule in layers(model):
        handles.append(submodule.register_forward_pre_hook(recorder.entering(name)))
        handles.append(submodule.register_forward_hook(recorder.leaving(name)))
    # prepended, so that the first layer inside is called after it
    handles.append(submodules[boundary].register_forward_pre_hook(recorder.crossing(boundary), prepend=True))
    try:
        with recorder:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return record


class _Recorder(TorchFunctionMode):
    """Labels tensors by the layer that they come from, through whatever the network does with them."""

    def __init__(self, record: Flow) -> None:
        super().__init__()
        self.record, self.crossed, self.depth = record, False, 0
        self.labels: dict[int, tuple[Tensor, str, bool]] = {}  # the tensor is held, so that its id stays its own

    def entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            self.depth += 1
            (self.record.after if self.crossed else self.record.before).append(name)
            known = [label for label in map(self._label, _tensors(arguments)) if label]
            early = [source for source, late in known if not late]
            if self.crossed and early and len(early) == len(known):
                self.record.fed.setdefault(name, early[0])

        return hook

    def leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self.depth -= 1
            self._mark(output, name, self.crossed)

        return hook

    def crossing(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: Any) -> Any:
            self.crossed = True
            return tuple(self._beyond(value, name) for value in arguments)

        return hook

    def _beyond(self, value: Any, name: str) -> Any:
        """The same values as another tensor, which lies beyond the boundary wherever the first one is used."""
        if isinstance(value, GeometricTensor):
            value = GeometricTensor(value.tensor.view_as(value.tensor), value.type, value.coords)
        elif isinstance(value, Tensor):
            value = value.view_as(value)
        self._mark(value, name, True)
        return value

    def _mark(self, value: Any, name: str, late: bool) -> None:
        for tensor in _tensors(value):
            self.labels[id(tensor)] = tensor, name, late

    def _label(self, tensor: Tensor) -> tuple[str, bool] | None:
        entry = self.labels.get(id(tensor))
        return None if entry is None else entry[1:]

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        if self.depth:
            return output
        known = [label for label in map(self._label, _tensors((arguments, options or {}))) if label]
        early, late = [s for s, beyond in known if not beyond], [s for s, beyond in known if beyond]
        if early and late:
            meeting = early[0], late[0], getattr(function, "__name__", str(function))
            if meeting not in self.record.meetings:
                self.record.meetings.append(meeting)
        if known:
            self._mark(output, late[0] if late else early[0], bool(late))
        return output


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, GeometricTensor):
        yield value.tensor
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
