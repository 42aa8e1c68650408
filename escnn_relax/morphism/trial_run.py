"""What a morphism made is run beside what it was made of, before it is returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import ArgumentError, RelaxError, UnsupportedModuleError
from .example_inputs import fitted, promised_inputs
from .isolated_run import apart, failing, run_once
from .module_tree import replace_modules

__all__ = ["OUT_OF_CODE", "Trial", "tried"]

#: Outputs count as the same up to this share of their norm, and in low precision up to so many roundings.
SAME, ROUNDINGS = 1e-2, 32

#: What a network's own code can do about it.
OUT_OF_CODE = (
    "let the network's own code look at layers only by what both kinds have, such as their types and"
    " expand_parameters()"
)


class Trial:
    """A network, an input on which it runs, and what it puts out there in eval mode.

    Args:
        model: left alone: only copies are run (:mod:`~escnn_relax.morphism.isolated_run`).
        example: the input, or a tuple of arguments.

    Raises:
        ArgumentError: the network does not run on the example.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self.example = model, example
        self.hooks = False
        try:
            try:
                self.before = self._run(apart(model, eval=True))
            except Exception:
                self.hooks = any(
                    submodule._forward_hooks or submodule._forward_pre_hooks for submodule in model.modules()
                )
                if not self.hooks:
                    raise
                self.before = self._run(apart(model, eval=True, hooks=True))  # they may be a part of what it computes
        except RelaxError:
            raise
        except Exception as error:
            raise ArgumentError(
                type(model),
                f"the model itself does not run on the example ({_said(error)})",
                remedy="pass an input as in training",
            ) from error

    @classmethod
    def prepare(cls, model: nn.Module, example: Any) -> Trial | None:
        """On an example; on one made of what the first layer's type promises for ``None``, and no trial where the
        network does not run on that; none for ``False``."""
        if example is False:
            return None
        if example is not None:
            return cls(model, example)
        for made in promised_inputs(model):
            try:
                return cls(model, made)
            except Exception:  # whatever the user's own code raises for an input that is not meant for it
                continue
        return None

    def check(
        self,
        result: nn.Module,
        made: str,
        *,
        same: bool = True,
        single: Sequence[str] = (),
        cause: str = "",
        remedy: str = OUT_OF_CODE,
    ) -> None:
        """Run what a morphism made of the network.

        In eval mode; and in the network's own where that is another one, unless the network itself does not run in it.

        Args:
            made: what the result is called, "relaxed" say.
            same: whether it has to compute the same in eval mode.
            single: names of the layers that were exchanged one by one: the one that is at fault is looked for.
            cause: what may be the cause, for the message.
            remedy: what to do.

        Raises:
            UnsupportedModuleError: it does not run, or has to compute the same and does not.
        """
        problem, name = self._fault(result, same)
        if not problem:
            return
        if single:
            name = self._culprit(result, same, single)
        whole = type(self.model)
        raise UnsupportedModuleError(
            f"{whole.__name__}.{name}" if name else whole, f"the {made} network would {problem}{cause}", remedy=remedy
        )

    def _fault(self, result: nn.Module, same: bool) -> tuple[str, str]:
        """What is wrong with a result, and the module in whose code that showed."""
        problem, name, after = self._attempt(result)
        if not problem and same and _differ(self.before, after, self.model):
            again = self._run(apart(self.model, eval=True, hooks=self.hooks), seed=1)
            if not _differ(self.before, again, self.model):  # or nobody can tell
                problem = "compute something else than the model"
        if not problem and any(submodule.training for submodule in self.model.modules()):
            if not self._attempt(self.model, eval=False)[0]:
                problem, name, _ = self._attempt(result, eval=False)
        return problem, name

    def _attempt(self, model: nn.Module, eval: bool = True) -> tuple[str, str, list[Tensor]]:
        """What goes wrong in a run of the network or a result, in whose code, and the output."""
        copied = apart(model, eval=eval, hooks=self.hooks)
        try:
            return "", "", self._run(copied)
        except Exception as error:
            return f"not run{'' if eval else ' in training mode'} ({_said(error)})", failing(copied, error), []

    def _run(self, copied: nn.Module, seed: int = 0) -> list[Tensor]:
        """The floating-point tensors that come out."""
        return _tensors(run_once(copied, fitted(self.example, copied), seed))

    def _culprit(self, result: nn.Module, same: bool, single: Sequence[str]) -> str:
        """The first layer with which the network fails when all layers after it are what they were."""
        submodules = dict(result.named_modules())

        def fails(count: int) -> bool:
            chosen = set(single[:count])
            hybrid = replace_modules(self.model, lambda name, _: submodules[name] if name in chosen else None)
            return bool(self._fault(hybrid, same)[0])

        low, high = 0, len(single)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(middle) else (middle, high)
        return single[high - 1]


def tried(model: nn.Module, result: nn.Module, example: Any, made: str, **options: Any) -> Any:
    """The result of a morphism, after its trial; ``made`` and the options are those of :meth:`Trial.check`."""
    trial = Trial.prepare(model, example)
    if trial is not None:
        trial.check(result, made, **options)
    return result


def _differ(before: list[Tensor], after: list[Tensor], model: nn.Module) -> bool:
    formats = {t.dtype for t in (*before, *after, *model.parameters()) if t.is_floating_point()}
    share = max([SAME, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in formats)])
    for a, b in zip(before, after):
        if a.shape != b.shape:
            return True
        if not a.isfinite().all():
            continue
        a, b = a.double(), b.double()
        if not float((a - b).norm()) <= share * float(a.norm()) + 1e-6:
            return True
    return len(before) != len(after)


def _said(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, GeometricTensor):
        value = value.tensor
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
