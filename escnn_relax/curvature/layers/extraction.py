"""Inputs and output gradients of chosen layers, recorded through a BackPACK extension.

BackPACK's hooks see tensors only and stay on a module for good. So while an extraction is open, and no longer, the
``forward`` of each chosen module is led through a :class:`Tap`, a tensor-in, tensor-out module that carries the hooks.
The network itself, its gradients and its mode are as before when the extraction closes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from backpack import backpack, extend
from backpack.context import CTX
from backpack.extensions.backprop_extension import FAIL_SILENT, BackpropExtension
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ...errors import CoverageError, UnsupportedModuleError
from ..checked_batches import answer
from .row_layout import RowLayouts

__all__ = ["Extraction", "Use"]


#: By what the node of a graph says which layer's output comes out of it.
MARK = "escnn_relax layer"

#: Nodes of a graph that change a tensor's shape alone.
VIEWS = {
    f"{name}Backward0" for name in ("Alias", "Clone", "ReshapeAlias", "Squeeze", "Unsqueeze", "UnsafeView", "View")
}
VIEWS |= {"SqueezeBackward1", "SqueezeBackward2"}


class Use(NamedTuple):
    """One application of a layer in a forward pass: its input, and the gradient of its output."""

    input: Tensor
    gradient: Tensor


class Source(torch.autograd.Function):
    """Where no gradient is asked for below a layer: it starts at the layer's output, and ends there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, anchor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


class Tap(nn.Module):
    """Applies a function of one tensor; exists to be hooked. One tap for each time that a layer is used in a pass."""

    input0: Tensor
    output: Tensor
    output_gradient: Tensor | None
    shape: torch.Size
    nothing: Tensor

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.function: Any = None  # of one tensor, while a pass runs
        self.differentiable = False

    def forward(self, input: Tensor) -> Tensor:
        if input.requires_grad or self.differentiable:
            output = self.function(input)
            return output if output.requires_grad else output.requires_grad_()
        with torch.no_grad():
            output = self.function(input)
        source: Any = Source
        return source.apply(output, torch.zeros((), requires_grad=True))

    def use(self) -> Use:
        """What was recorded in the last passes."""
        if self.output_gradient is None:  # the output had no influence on the network's
            return Use(self.input0.detach(), self.nothing.expand(self.shape))
        return Use(self.input0.detach(), self.output_gradient.detach())


class OutputGradients(BackpropExtension):
    """The BackPACK extension: in a backward pass, keeps the gradient with respect to each tap's output."""

    def __init__(self) -> None:
        super().__init__(savefield="output_gradient", module_exts={}, fail_mode=FAIL_SILENT)

    def expects_backpropagation_quantities(self) -> bool:
        return False

    def __call__(self, module: nn.Module, g_inp: tuple[Any, ...], g_out: tuple[Any, ...]) -> None:
        if isinstance(module, Tap):
            setattr(module, self.savefield, g_out[0])


class Extraction:
    """Records what given layers read and what is back-propagated to them.

    Args:
        layers: modules by name; each takes and returns one tensor or one ``GeometricTensor``.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self._taps: dict[str, list[Tap]] = {name: [] for name in layers}
        self._used: dict[str, int] = dict.fromkeys(layers, 0)
        self._layouts = RowLayouts()
        self._handles: list[Any] = []  # of the taps' hooks, which BackPACK would keep for good
        self._extension = OutputGradients()
        self._differentiable = False

    @contextmanager
    def open(self, model: nn.Module, keep: tuple[nn.Parameter, ...] = ()) -> Iterator[None]:
        """Tap the layers; evaluation mode, and no parameter but those in ``keep`` requires a gradient meanwhile."""
        modes = [(module, module.training) for module in model.modules()]
        differentiable = {id(p) for p in keep}
        frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in differentiable]
        patched = {name: vars(module)["forward"] for name, module in self.layers.items() if "forward" in vars(module)}
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            _rebuild(model)
            self._differentiable = bool(keep)
            for name, module in self.layers.items():
                module.forward = self._tap_forward(name, module, module.forward)
            with warnings.catch_warnings(), _eager(), torch.inference_mode(False):
                warnings.filterwarnings(
                    "ignore", "Full backward hook is firing when gradients are computed with respect"
                )
                yield
        finally:
            for name, module in self.layers.items():
                if name in patched:
                    module.forward = patched[name]
                else:
                    vars(module).pop("forward", None)
            self.forget()
            self._taps, self._layouts = {name: [] for name in self.layers}, RowLayouts()
            for handle in self._handles:
                handle.remove()
                CTX.hook_handles.remove(handle)
            self._handles = []
            self._differentiable = False
            for parameter in frozen:
                parameter.requires_grad_(True)
            _restore(modes)

    def forward(self, model: nn.Module, input: Any) -> Any:
        """One pass with the taps in place; returns the network's output, with its graph."""
        self._used = dict.fromkeys(self.layers, 0)
        if self._differentiable:
            _rebuild(model)  # layers that keep an expanded kernel keep its graph, which serves one backward pass only
        with torch.enable_grad():
            return answer(model, input)

    def backward(self, output: Tensor, columns: Iterable[Tensor]) -> Iterator[dict[str, list[Use]]]:
        """Back-propagate each of ``columns``, shape ``(columns, *output.shape)``, and yield what reached the layers.

        A layer that reads several rows of a sample has as many uses (:mod:`~escnn_relax.curvature.layers.row_layout`);
        ``UnsupportedModuleError`` where it cannot be told which.
        """
        taps = self.find(output)
        for column in columns:
            yield self._layouts.apart(self._gradients(output, column, taps), len(output))

    def find(self, output: Tensor) -> dict[str, list[Tap]]:
        """Find out which rows of the last pass belong to which sample; returns the taps that it used."""
        taps = self._taps_in_use()
        self._find(output, taps, lambda column: self._gradients(output, column, taps))
        return taps

    def _gradients(self, output: Tensor, column: Tensor, taps: dict[str, list[Tap]]) -> dict[str, list[Use]]:
        for layer_taps in taps.values():
            for tap in layer_taps:
                tap.output_gradient = None
        with _hooks(self._extension):
            torch.autograd.backward(output, column, retain_graph=True)
        return {name: [tap.use() for tap in layer_taps] for name, layer_taps in taps.items()}

    def ending(self, output: Tensor) -> str | None:
        """The layer that was used once in the last pass, to return the network's output, with the same samples and
        channels; ``None`` where something more was done to it than to write it in another shape."""
        node: Any = output.grad_fn
        while node is not None and MARK not in node.metadata:
            node = node.next_functions[0][0] if node.name() in VIEWS else None
        name, shape = ("", output.shape) if node is None else node.metadata[MARK]
        return name if shape[:2] == output.shape[:2] and self._used.get(name) == 1 else None

    def forget(self) -> None:
        """Let go of what the last pass recorded."""
        for tap in (tap for taps in self._taps.values() for tap in taps):
            _forget(tap)

    def differentiable(self, output: Tensor, columns: Iterable[Tensor]) -> Iterator[dict[str, list[Use]]]:
        """As :meth:`backward`, within :meth:`open` with something to keep: inputs and gradients have graphs to it."""
        taps = self._taps_in_use()
        outputs = [tap.output for layer_taps in taps.values() for tap in layer_taps]

        def gradients(column: Tensor, graph: bool) -> dict[str, list[Use]]:
            with _hooks():
                results = torch.autograd.grad(
                    output, outputs, column, retain_graph=True, create_graph=graph, allow_unused=True
                )
            pairs = iter(zip(outputs, results))
            return {
                name: [
                    Use(tap.input0, torch.zeros_like(o) if g is None else g) for tap, (o, g) in zip(layer_taps, pairs)
                ]
                for name, layer_taps in taps.items()
            }

        self._find(output, taps, lambda column: gradients(column, False))
        for column in columns:
            yield self._layouts.apart(gradients(column, True), len(output))

    def _find(
        self, output: Tensor, taps: dict[str, list[Tap]], gradients: Callable[[Tensor], dict[str, list[Use]]]
    ) -> None:
        inputs = {name: [tap.input0 for tap in layer_taps] for name, layer_taps in taps.items()}
        self._layouts.find(output, inputs, gradients)

    def _taps_in_use(self) -> dict[str, list[Tap]]:
        taps = {name: self._taps[name][: self._used[name]] for name in self.layers}
        unused = [name for name, layer_taps in taps.items() if not layer_taps]
        if unused:
            raise CoverageError(
                unused[0],
                "the layer took no part in the forward pass, so nothing can be said about its weights: "
                "it was not called, or only where no gradient passes (torch.no_grad, a reentrant checkpoint)",
                remedy=(
                    "let gradients pass, remove it from the model, or freeze its parameters by requires_grad_(False)"
                ),
            )
        return taps

    def _tap_forward(self, name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def through_tap(input: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():  # such a use has no influence on any gradient
                return forward(input, *args, **kwargs)
            taps, index = self._taps[name], self._used[name]
            if index == len(taps):
                known = len(CTX.hook_handles)
                taps.append(extend(Tap(name)))
                self._handles += CTX.hook_handles[known:]
            self._used[name] += 1
            tap, geometric = taps[index], isinstance(input, GeometricTensor)
            tap.differentiable = self._differentiable
            if args or kwargs or not (geometric or isinstance(input, Tensor)):
                remedy = "call the layer with its input alone, or freeze its weights to leave it out"
                received = [*(type(value).__name__ for value in (input, *args)), *(f"{key}=" for key in kwargs)]
                expected = "one tensor as the layer's only input"
                raise UnsupportedModuleError(name, expected=expected, got=", ".join(received), remedy=remedy)

            def apply(tensor: Tensor) -> Tensor:
                result = forward(GeometricTensor(tensor, input.type) if geometric else tensor)
                return result.tensor if geometric else result

            tap.function = apply
            tensor = input.tensor if geometric else input
            # the copies are for networks that later change the input or the output in place
            output = tap(tensor.clone()).clone()
            if not self._differentiable:  # BackPACK keeps the output, of which only the shape will be wanted
                tap.shape, tap.nothing = output.shape, output.new_zeros(())
                mark: Any = output.grad_fn  # a reference to it would keep the graph
                mark.metadata[MARK] = name, output.shape
                del tap.output
            return GeometricTensor(output, module.out_type) if geometric else output

        return through_tap


@contextmanager
def _hooks(*extensions: BackpropExtension) -> Iterator[None]:
    """BackPACK's hooks with these extensions, for a pass that others follow on the same graph."""
    with backpack(*extensions, retain_graph=True):
        yield


def _rebuild(model: nn.Module) -> None:
    """Into evaluation mode through training mode, since escnn's layers rebuild their filter on that change only."""
    model.train()
    model.eval()


def _forget(tap: Tap) -> None:
    """Break the circle of tap, output, graph and hook, which the collector does not see."""
    tap.function = None
    for name in ("input0", "output", "output_gradient"):
        if hasattr(tap, name):
            delattr(tap, name)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    """Put every module back in its own mode; parents come before their children in the list."""
    for module, training in modes:
        if module.training != training:
            module.train(training)


@contextmanager
def _eager() -> Iterator[None]:
    """Meanwhile what is compiled runs as it is written (with a torch that can, from 2.6), and transformers layer by
    layer, instead of as one operation of evaluation mode, so that each layer is seen."""
    stance, fused = getattr(torch.compiler, "set_stance", None), torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with nullcontext() if stance is None else stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
