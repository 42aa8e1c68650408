r"""How a group acts on the gradient of a layer's kernel, pathway by pathway.

Turning a sample, :math:`(x, y) \to (g x, g y)`, turns the gradient of its loss in the kernel of any layer of a strictly
equivariant network: with :math:`(g \cdot K)(x) = \rho_{out}(g) K(g^{-1}x) \rho_{in}(g)^{-1}`,

.. math:: \langle \nabla\ell(gx, gy), g \cdot K \rangle = \langle \nabla\ell(x, y), K \rangle \quad \text{for all } K.

So in the orthonormal kernels :math:`\Phi` of a pathway the coefficients :math:`\Gamma = \Phi\,\nabla\ell` become
:math:`M(g) \Gamma` with :math:`M(g)_{kj} = \langle g^{-1} \cdot \Phi_k, \Phi_j \rangle`. The same M acts for every pair
of an input and an output field, so that combinations of pairs may be taken first: that is how a wide layer becomes
small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from escnn.group import GroupElement, Representation
from torch import Tensor

from ..errors import UnsupportedModuleError
from ..nn.relaxed_convolution import RelaxedConvolution
from ..symmetry.grid.kernel_action import grid_permutation, transform_kernels
from .exact_group import products

__all__ = ["LayerAction", "PathwayAction"]

#: Kernels of one pair of representations beyond this number are represented by a random invariant part of so many.
KERNELS = 128
#: Pairs of fields beyond this number are represented by so many random combinations.
PAIRS = 64
#: Largest share of a turned kernel that may lie outside its pathway: escnn samples kernels in float32.
CLOSED = 1e-3


@dataclass(frozen=True)
class PathwayAction:
    """One pathway of one pair of representations.

    Attributes:
        rows: orthogonal kernels of one norm, ``(K, out size * in size * S)``, float64.
        matrices: M(g) for each element, ``(order, K, K)``, orthogonal.
    """

    name: str
    rows: Tensor
    matrices: Tensor


class _Pair:
    """All field pairs of one input and one output representation: bucket and sign of each, and where its channels
    are."""

    def __init__(self, in_channels: Tensor, out_channels: Tensor, generator: torch.Generator) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels  # channels (fields, size)
        count = len(in_channels) * len(out_channels)
        self.buckets = min(count, PAIRS)
        self.bucket_signs: Tensor | None = None  # bucket of each pair; those of sign -1 come after all of sign +1
        if count > PAIRS:
            bucket = torch.randint(PAIRS, (count,), generator=generator)
            self.bucket_signs = bucket + PAIRS * torch.randint(2, (count,), generator=generator)
        self.pathways: list[PathwayAction] = []
        self.strict: list[Tensor] = []  # orthonormal equivariant kernels

    def sketch(self, gradient: Tensor) -> Tensor:
        """``(out channels, in channels, S)`` to ``(buckets, out size * in size * S)``: signed sums over field pairs."""
        (outs, o), (ins, i) = self.out_channels.shape, self.in_channels.shape
        rows = _select_channels(_select_channels(gradient, 0, self.out_channels), 1, self.in_channels)
        rows = rows.reshape(outs, o, ins, i, -1).transpose(1, 2).reshape(outs * ins, -1)
        if self.bucket_signs is None:
            return rows
        sums = rows.new_zeros(2 * PAIRS, rows.shape[1]).index_add_(0, self.bucket_signs.to(rows.device), rows)
        return sums[:PAIRS] - sums[PAIRS:]


def _select_channels(gradient: Tensor, axis: int, channels: Tensor) -> Tensor:
    """The gradient of these channels; no copy where they are all channels in order, as in most layers."""
    channels = channels.flatten()
    if len(channels) == gradient.shape[axis] and bool((channels == torch.arange(len(channels))).all()):
        return gradient
    return gradient.index_select(axis, channels.to(gradient.device))


class LayerAction:
    """The action on the gradient of one relaxed layer.

    Args:
        elements: of the layer's group, exact on its grid.
        generator: what random combinations are drawn from.

    Raises:
        UnsupportedModuleError: kernels that an element moves out of their pathway, or by a matrix that is not
            orthogonal.
    """

    def __init__(self, layer: RelaxedConvolution, elements: Sequence[GroupElement], generator: torch.Generator) -> None:
        in_reprs, out_reprs = ({r.name: r for r in fields} for fields in layer._kernel_fields())
        self.pairs: list[_Pair] = []
        permutations = [grid_permutation(layer.space, ~g, layer.band.points) for g in elements]
        self._products = products(elements)
        if any(p is None for p in permutations):
            raise UnsupportedModuleError(
                type(layer), "its kernel's grid is not mapped onto itself", remedy="leave it out by layers="
            )
        for in_name, out_name in layer.kernel.pairs:
            channels = layer.kernel.in_fields[in_name].channels.cpu(), layer.kernel.out_fields[out_name].channels.cpu()
            pair = _Pair(*channels, generator)
            for pathway in layer.pathways:
                for block in layer.kernel.blocks[pathway.name]:
                    if not pathway.breaks and (block.in_name, block.out_name) == (in_name, out_name):
                        rows = layer.kernel.basis(block).detach().to("cpu", torch.float64).flatten(1)
                        pair.strict.append(torch.linalg.qr(rows.T).Q.T)
                    if pathway.breaks and (block.in_name, block.out_name) == (in_name, out_name):
                        rows = layer.kernel.basis(block).detach().to("cpu", torch.float64)
                        moves = [(~g, p) for g, p in zip(elements, permutations)]
                        action = self._pathway(
                            pathway.name, rows, moves, in_reprs[in_name], out_reprs[out_name], generator
                        )
                        pair.pathways.append(action)
            self.pairs.append(pair)

    def _pathway(
        self,
        name: str,
        rows: Tensor,
        moves: list[Any],
        ins: Representation,
        outs: Representation,
        generator: torch.Generator,
    ) -> PathwayAction:
        count, norm = len(rows), 1.0
        if count > KERNELS:  # the span of the orbits of a few random kernels
            few = max(1, KERNELS // len(moves))
            combinations = torch.randn(few, count, generator=generator, dtype=torch.float64) @ rows.flatten(1)
            combinations = combinations.view(few, *rows.shape[1:])
            orbit = torch.cat([transform_kernels(combinations, g, ins, outs, p) for g, p in moves])
            orbit = orbit.flatten(1)
            squares, vectors = torch.linalg.eigh(orbit @ orbit.T)
            mask = squares > 1e-12 * squares[-1]
            rows = (vectors[:, mask] / squares[mask].sqrt()).T @ orbit
            # once more orthonormal, since small values leave roundings
            rows = torch.linalg.qr(rows.T).Q.T.reshape(-1, *combinations.shape[1:])
            norm = (count / len(rows)) ** 0.5
        flat = rows.flatten(1)
        matrices = torch.zeros(len(moves), len(flat), len(flat), dtype=flat.dtype)
        for n, factors in self._products.items():
            if factors is not None:  # M is a homomorphism
                matrices[n] = matrices[factors[0]] @ matrices[factors[1]]
                continue
            images = transform_kernels(rows, moves[n][0], ins, outs, moves[n][1]).flatten(1)
            matrix = matrices[n] = images @ flat.T
            outside = (images - matrix @ flat).norm() / images.norm()
            skew = (matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max()
            if not max(float(outside), float(skew)) < CLOSED:
                problem = (
                    f"the group does not act orthogonally on the kernels of {name} ({float(outside):.1e} leave them)"
                )
                raise UnsupportedModuleError("", problem, remedy="use orthogonal representations, or leave it out")
        return PathwayAction(name, norm * flat, matrices)

    @property
    def names(self) -> list[str]:
        """Its pathways."""
        return list(dict.fromkeys(p.name for pair in self.pairs for p in pair.pathways))

    def features(self, gradient: Tensor) -> dict[str, list[Tensor]]:
        """Coefficients of each pathway, one tensor ``(buckets, K)`` a pair."""
        coefficients: dict[str, list[Tensor]] = {}
        for pair in self.pairs:
            sketch = pair.sketch(gradient).to("cpu", torch.float64)
            for pathway in pair.pathways:
                coefficients.setdefault(pathway.name, []).append(sketch @ pathway.rows.T)
        return coefficients

    def strict(self, gradient: Tensor) -> list[Tensor]:
        """Coefficients of the equivariant kernels: what training a strict network makes vanish."""
        coefficients = []
        for pair in self.pairs:
            sketch = pair.sketch(gradient).to("cpu", torch.float64)
            coefficients += [sketch @ rows.T for rows in pair.strict]
        return coefficients

    def move(self, features: dict[str, list[Tensor]], element: int) -> dict[str, list[Tensor]]:
        """The features of the same samples moved by an element, given by its position."""
        return {n: [f @ m[element].T for f, m in zip(tensors, self._matrices(n))] for n, tensors in features.items()}

    def table(self, name: str, groups: Sequence[list[Tensor]]) -> Tensor:
        r""":math:`\langle \Gamma_b, M(g) \Gamma_{b'} \rangle` for features of groups of samples, ``(order, B, B)``."""
        products = []
        for index, matrices in enumerate(self._matrices(name)):
            stack = torch.stack([g[index] for g in groups])
            products.append(torch.stack([stack.flatten(1) @ (stack @ m.T).flatten(1).T for m in matrices]))
        return torch.stack(products).sum(0)

    def _matrices(self, name: str) -> list[Tensor]:
        return [p.matrices for pair in self.pairs for p in pair.pathways if p.name == name]
