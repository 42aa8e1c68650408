"""Anchors between the pixels of a grid, with a length scale that is fixed or learned by the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ...errors import ArgumentError, naming
from ...symmetry.grid.interpolation import RANGE, interpolation, sufficient_noise
from ...symmetry.grid.sites import Sites, grid_points, orbit_points
from ...symmetry.groups.subgroup import Subgroup

__all__ = ["Anchors", "length_scales"]


class Anchors(nn.Module):
    """Anchors over a grid, and the interpolation from them to its pixels.

    Args:
        shape: of the grid.
        subgroup: the group that permutes the anchors.
        fraction: number of anchors / number of pixels (fraction); at least one anchor, and whole orbits only.
        omega: inverse length scale (1 / pixels).
        learn: make the scale a parameter ``log_omega``. It is for the evidence
            (:meth:`~escnn_relax.Evidence.hypergradient`) and not for the loss, which nothing stops from making it grow:
            :func:`~escnn_relax.fit` keeps it out of its descent and moves it up the evidence at every refresh; an
            optimiser of your own should not hold it.
        seed: of the positions, which are drawn once.
        noise: standard deviation of the values at the anchors. Where the interpolation is singular with it, it says so
            by a warning and in :attr:`noise_used`.
        layer: the class of the layer that has them, for errors and warnings.

    Attributes:
        learned: whether the scale is a parameter.

    Positions, and a scale that is not learned, stay in float64 whatever the layer is converted to. The interpolation is
    solved in float64 and needs a layer in float32 or float64 (or autocast): in half precision :meth:`matrix` raises.
    With a learned scale it is solved anew only where a gradient is wanted or the scale has changed.

    Raises:
        ArgumentError: numbers that make no sense, or a group of more elements than there are pixels: each orbit of
            anchors has one for each element.
    """

    anchors: Tensor
    pixels: Tensor
    log_omega: Tensor
    _fixed: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        subgroup: Subgroup,
        fraction: float,
        omega: float,
        learn: bool,
        seed: int,
        noise: float = 0.01,
        layer: type | None = None,
    ) -> None:
        super().__init__()
        self.noise, self.learned, self.layer = noise, learn, layer or type(self)
        with naming(self.layer):
            _check_numbers(fraction, omega, noise)
        sites = math.prod(shape)
        count = max(1, round(fraction * sites))
        if max(1, count // subgroup.order) * subgroup.order > sites:
            raise ArgumentError(
                self.layer,
                f"more anchors than sites: one orbit of {subgroup.name} has {subgroup.order} anchors",
                expected=f"at most {sites}, the sites of a grid of {' x '.join(map(str, shape))}",
                got=subgroup.order,
                remedy="use a larger grid, a pathway without anchors ('factored'), or keep a smaller group ('free')",
            )
        points = orbit_points(subgroup, shape, count, np.random.default_rng(seed))
        dtype = torch.get_default_dtype()
        self.sites = Sites(points, subgroup)
        self.register_buffer("anchors", torch.as_tensor(points, dtype=torch.float64))
        self.register_buffer("pixels", torch.as_tensor(grid_points(shape), dtype=dtype), persistent=False)
        self._cached: tuple[tuple[Any, ...], Tensor] | None = None
        if learn:
            self.log_omega = nn.Parameter(torch.tensor(math.log(omega), dtype=dtype))
        else:
            self.register_buffer("log_omega", torch.tensor(math.log(omega), dtype=torch.float64))
            self.register_buffer("_fixed", self._solved(), persistent=False)

    @property
    def noise_used(self) -> float:
        """The noise that the interpolation needs at the present scale: ``noise``, or more where that leaves it
        singular."""
        return sufficient_noise(
            self.anchors, self.log_omega.detach().double().exp(), noise=self.noise, layer=self.layer
        )

    def matrix(self) -> Tensor:
        """From values at the anchors to values at the pixels, shape ``(S, P)``; ``ArgumentError`` in half precision."""
        if self.pixels.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(
                self.layer,
                "interpolation from anchors is too coarse in half precision",
                expected="a layer in float32 or float64",
                got=self.pixels.dtype,
                remedy="keep the model in float32 and use autocast, or a pathway without anchors ('factored')",
            )
        if not self.learned:
            return self._fixed
        if _differentiated(self.log_omega):
            return self._solved()
        key = (float(self.log_omega), self.noise, self.pixels.dtype, self.pixels.device)
        if self._cached is None or self._cached[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # a later pass may want gradients
                self._cached = key, self._solved()
        return self._cached[1]

    def _solved(self) -> Tensor:
        omega = self.log_omega.double().exp()
        return interpolation(self.anchors, self.pixels, omega, noise=self.noise, layer=self.layer).to(self.pixels.dtype)

    def _refresh(self) -> None:
        """Solve again after the layer's precision or state has changed."""
        self._cached = None
        if not self.learned and self.pixels.dtype in (torch.float32, torch.float64) and not self.pixels.is_meta:
            with torch.no_grad():
                self._fixed = self._solved()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Anchors:
        before, exact = self.pixels.dtype, {"anchors": self.anchors}
        if not self.learned:
            exact["log_omega"] = self.log_omega
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch
        for name, tensor in exact.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, moved.to(tensor.dtype) if tensor.is_meta else tensor.to(moved.device))
        self._cached = None
        if self.pixels.dtype != before:
            self._refresh()
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state, prefix, *arguments)
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def extra_repr(self) -> str:
        text = f"{len(self.sites)} anchors for {len(self.pixels)} pixels" + (", learned" if self.learned else "")
        if self.log_omega.is_meta:
            return text
        omega = float(self.log_omega.detach().double().exp())
        text += f", omega={omega:.3g}"
        if RANGE[0] <= omega <= RANGE[1] and (used := self.noise_used) != self.noise:
            text += f", noise={used:.3g} instead of {self.noise:.3g}"
        return text


def length_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The log inverse length scales that a model learns, by name; each once, frozen ones left out.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> free = subgroup(gspaces.rot2dOnR2(4), 1)
    >>> list(length_scales(nn.Sequential(*(Anchors((3, 3), free, 0.5, 1.0, learn, 0) for learn in (True, False)))))
    ['0.log_omega']
    """
    parameters: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, Anchors)
            and isinstance(module.log_omega, nn.Parameter)
            and module.log_omega.requires_grad
        ):
            parameters.setdefault(
                id(module.log_omega), (f"{name}.log_omega" if name else "log_omega", module.log_omega)
            )
    return dict(parameters.values())


def _check_numbers(fraction: object, omega: object, noise: object) -> None:
    if not (_is_number(fraction) and 0 < fraction <= 1):
        expected = "a fraction above 0 and at most 1: no more anchors than sites"
        raise ArgumentError(expected=expected, got=repr(fraction), remedy="leave it out for the default")
    if not (_is_number(omega) and RANGE[0] <= omega <= RANGE[1]):
        expected = f"omega, an inverse length scale (1 / pixels), between {RANGE[0]:g} and {RANGE[1]:g}"
        raise ArgumentError(expected=expected, got=repr(omega), remedy="1.0 is a length of one pixel")
    if not (_is_number(noise) and 0 <= noise < math.inf):
        remedy = "leave it out for the default"
        raise ArgumentError(expected="noise, a number of at least 0", got=repr(noise), remedy=remedy)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _differentiated(tensor: Tensor) -> bool:
    """Whether a derivative in it is wanted, backwards or forwards."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(tensor).tangent is not None
