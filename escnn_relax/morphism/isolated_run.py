"""Runs of a network that leave no trace in it: on a copy, with random numbers of their own."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from escnn.nn import GeometricTensor
from escnn.nn.modules.basismanager import BasisManager
from torch import Tensor, nn

from ..nn.kernels.pathway_sum import PathwaySum
from .module_tree import copy_module

__all__ = ["apart", "failing", "run_once"]


#: What holds sampled kernels: constants that can be large, and in escnn are slow to copy.
KERNELS = (PathwaySum, BasisManager)


def apart(model: nn.Module, *, eval: bool = False, hooks: bool = False) -> nn.Module:
    """A copy to run: parameters, statistics, attributes and layers that are built when first called are its own;
    sampled kernels are those of the model.

    Args:
        eval: in eval mode; otherwise in the model's modes.
        hooks: keep those of the user's own, which may record what passes; torch's, such as those of spectral norm, stay
            anyway.
    """
    constants = [submodule for submodule in model.modules() if isinstance(submodule, KERNELS)]
    copied = copy_module(model, shared=constants)
    if eval:
        modes = [(submodule, submodule.training) for whole in constants for submodule in whole.modules()]
        copied.eval()
        for submodule, mode in modes:
            submodule.training = mode
    for submodule in copied.modules() if not hooks else ():
        for registered in (submodule._forward_pre_hooks, submodule._forward_hooks):
            for key in [key for key, hook in registered.items() if not _is_torch_hook(hook)]:
                del registered[key]
    return copied


def run_once(copied: nn.Module, example: Any, seed: int = 0) -> Any:
    """The output for an example, a tensor, a GeometricTensor, or a tuple of arguments, which is left as it is.

    Gradients are recorded, since there are networks that differentiate in their forward; warnings are not shown, and
    nothing is compiled.

    Args:
        copied: made by :func:`apart`, to be used up.
    """
    arguments = _cloned(example if isinstance(example, tuple) else (example,))
    with (
        _separate_random_state(seed),
        warnings.catch_warnings(),
        _uncompiled(copied),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        return copied(*arguments)


def failing(copied: nn.Module, error: BaseException) -> str:
    """The name of the innermost of a network's own modules in whose code an error was raised."""
    names = {id(submodule): name for name, submodule in copied.named_modules()}
    culprit, step = "", error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            culprit = names[id(owner)]
        step = step.tb_next
    return culprit


def _is_torch_hook(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).split(".")[0] == "torch"


@contextmanager
def _separate_random_state(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python that begin at a seed; afterwards they go on as if nothing had been
    drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = (
        list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    )
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _uncompiled(model: nn.Module) -> Any:
    """For modules that torch.compile made: a run as they are written, since compiling takes longer than what is
    tried."""
    if any("_orig_mod" in submodule._modules for submodule in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _cloned(value: Any) -> Any:
    if isinstance(value, GeometricTensor):
        return GeometricTensor(_cloned(value.tensor), value.type, value.coords)
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cloned(v) for v in value))
    if type(value) in (list, tuple):
        return type(value)(_cloned(v) for v in value)
    if type(value) is dict:
        return {key: _cloned(v) for key, v in value.items()}
    return value
