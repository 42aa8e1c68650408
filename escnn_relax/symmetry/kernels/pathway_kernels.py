"""The mutually orthogonal kernels of each pathway of a relaxed layer.

The plan is made once for a layer (:mod:`escnn_relax.symmetry.kernels.plan`), the kernels once for each pair of an input
and an output representation (:meth:`Relaxation.bases`), of large ones for each pair of irreps. Later pathways are
orthogonal to earlier ones on the pixel grid, in the order of the plan, and orthonormal among themselves. Kernels are
kept in memory and on disk, see :mod:`escnn_relax.symmetry.kernels.kernel_cache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from escnn.group import GroupElement, Representation
from escnn.gspaces import GSpace
from numpy.typing import NDArray
from torch import Tensor

from ..grid.kernel_action import grid_permutation, isotypic_projection
from ..groups.decomposition import generating_elements
from ..groups.irreps import irreps_up_to
from ..groups.lattice import Subgroup, subgroup
from . import kernel_cache
from .cache_key import cache_key
from .graded import fixed_kernels, isotypic_kernels
from .input_irreps import Splitting
from .irrep_pairs import BlockKernels, Frame, IrrepBlock, Kernels, irrep_channels, make_frame
from .linear_algebra import complement, orthonormal
from .pathway import BREAKING_OFF_BAND, EQUIVARIANT, Pathway
from .patterns import Patterns, band_patterns
from .sampling import Band, FiberBand, Sampler

__all__ = ["Relaxation"]

#: From so many entries of one kernel (output x input x pixels) on, kernels are solved and kept by pairs of irreps.
#: Measured (``tests/benchmarks/graded.md``): below half of this it costs as much as it brings, from here on expansions
#: take .6 of the time.
BLOCK_THRESHOLD = 3_000

#: In space already from so many entries of all kernels on.
SPATIAL_THRESHOLD = 2**18

#: Equivariant kernels of a smaller relative distance span the same space: escnn samples them in float32.
SPAN_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Relaxation:
    """The ways in which a layer on ``gspace`` may break its symmetry.

    Attributes:
        gspace: the G-space whose group is relaxed.
        pathways: the equivariant one first, then the residual ones in the order of the grading.
        basis: one of :data:`~escnn_relax.symmetry.kernels.plan.BASES`.
        frequencies: the highest frequency of the irreps in which a subgroup's kernels are looked for; ``None`` for all
            irreps of a finite group.
    """

    gspace: GSpace
    pathways: tuple[Pathway, ...]
    basis: str = "band-limited"
    frequencies: int | None = None

    def bases(
        self, band: Band | FiberBand, in_repr: Representation, out_repr: Representation, equivariant: Tensor
    ) -> dict[str, Kernels]:
        """Kernels of every pathway for one pair of representations.

        Args:
            equivariant: the layer's own equivariant kernels, shape ``(K, out size, in size, S)``; kept as they are.

        Returns:
            for each pathway's name kernels ``(K_p, out size, in size, S)``, float64; ``K_p`` may be 0. Residual ones
            are :class:`~escnn_relax.symmetry.kernels.irrep_pairs.BlockKernels` where kernels have more than
            :data:`BLOCK_THRESHOLD` entries each, or in space more than :data:`SPATIAL_THRESHOLD` together.
        """
        # By value: the signs of escnn's solutions differ between machines, and a checkpoint may have brought others.
        equivariant = equivariant.detach().to("cpu", torch.float64, copy=True)
        composed = self._compose(band, in_repr, out_repr, equivariant)
        if composed is not None:
            return {EQUIVARIANT.name: equivariant, **composed}
        return {EQUIVARIANT.name: equivariant, **self._residual(band, in_repr, out_repr, equivariant)}

    def _residual(
        self, band: Band | FiberBand, in_repr: Representation, out_repr: Representation, equivariant: Tensor
    ) -> dict[str, Tensor]:
        """The kernels of every pathway but the equivariant one, from the cache or newly built."""
        key = cache_key(self, band, in_repr, out_repr, equivariant)
        description = f"the kernels of {self.gspace.name} from {in_repr.name} to {out_repr.name}"
        residual = kernel_cache.kernels(key, lambda: self._split(band, in_repr, out_repr, equivariant), description)
        return {p.name: residual[p.name].clone() for p in self.residual}

    def _compose(
        self, band: Band | FiberBand, in_repr: Representation, out_repr: Representation, equivariant: Tensor
    ) -> dict[str, Kernels] | None:
        """The residual kernels by pairs of irreps, each pair solved once.

        ``None`` for small kernels and for representations that are not orthogonal.
        """
        patterns, space = self._patterns(band), equivariant.shape[1:].numel()
        depth = equivariant.shape[-1] if patterns is None else len(patterns.pictures)
        many = space * depth * out_repr.size * in_repr.size > SPATIAL_THRESHOLD and self.gspace.dimensionality == 3
        single = len(in_repr.irreps) == len(out_repr.irreps) == 1
        if not (space > BLOCK_THRESHOLD or many) or single and patterns is None:
            return None
        frame = make_frame(in_repr, out_repr, None if patterns is None else patterns.pictures, equivariant.shape[-1])
        if frame is None:
            return None
        pathway_blocks: dict[str, list[IrrepBlock]] = {p.name: [] for p in self.residual}
        equivariant_blocks = []
        for phi, outs in irrep_channels(out_repr).items():
            for psi, ins in irrep_channels(in_repr).items():
                irreps = [self.gspace.fibergroup.irrep(*id) for id in (psi, phi)]
                if irreps == [in_repr, out_repr]:
                    block = equivariant
                elif patterns is not None:
                    block = patterns.sample_pair(self.gspace, psi, phi)
                else:
                    block = band.sample(self.gspace, *irreps)
                equivariant_blocks.append(IrrepBlock(outs, ins, block))
                for name, kernels in self._residual(band, irreps[0], irreps[1], block).items():
                    if len(kernels):
                        pathway_blocks[name].append(IrrepBlock(outs, ins, frame.project(kernels)))
        if not _equal_span(frame, equivariant_blocks, equivariant):
            return None
        return {name: BlockKernels(frame, tuple(blocks)) for name, blocks in pathway_blocks.items()}

    def _patterns(self, band: Band | FiberBand) -> Patterns | None:
        """The coordinates in which band-limited kernels are solved, ``None`` for others."""
        if not isinstance(band, Band) or self.basis != "band-limited":
            return None
        if band.key not in self._pattern_cache:
            self._pattern_cache[band.key] = band_patterns(band, self.gspace)
        return self._pattern_cache[band.key]

    @cached_property
    def _pattern_cache(self) -> dict[Any, Patterns]:
        return {}

    @cached_property
    def subgroups(self) -> dict[str, Subgroup]:
        """The subgroup of each pathway that has one, by the pathway's name."""
        return {p.name: subgroup(self.gspace, p.subgroup) for p in self.pathways if p.kind == "subgroup"}

    @cached_property
    def generators(self) -> dict[str | None, list[tuple[GroupElement, NDArray[Any] | None]]]:
        """Elements that generate the group, under ``None``, and each pathway's subgroup, by its name; with their
        action on space."""
        elements_by_name: dict[str | None, list[GroupElement]] = {
            None: list(generating_elements(self.gspace.fibergroup))
        }
        for name, member in self.subgroups.items():
            elements_by_name[name] = [member.embed(h) for h in generating_elements(member.group)]
        act = self.gspace.basespace_action if self.gspace.dimensionality else lambda g: None
        return {name: [(g, act(g)) for g in elements] for name, elements in elements_by_name.items()}

    def _split(
        self, band: Band | FiberBand, in_repr: Representation, out_repr: Representation, equivariant: Tensor
    ) -> dict[str, Tensor]:
        patterns = self._patterns(band) if self.gspace.dimensionality == 3 else None
        if patterns is not None:  # solving for kernels in space takes long, the plane's are as they have always been
            splitting = Splitting(patterns.project(equivariant), in_repr)
            kernels = (self._kernels(p, patterns, in_repr, out_repr) for p in self.residual)
            return {
                p.name: splitting.increment(pathway_kernels) @ patterns.pictures
                for p, pathway_kernels in zip(self.residual, kernels)
            }
        splitting = Splitting(equivariant, in_repr)
        result = {}
        for pathway in self.pathways[1:]:
            if pathway == BREAKING_OFF_BAND:
                rest = complement(splitting.span)
                result[pathway.name] = rest.view(-1, *equivariant.shape[1:])
            else:
                result[pathway.name] = splitting.increment(self._kernels(pathway, band, in_repr, out_repr))
        return result

    def _kernels(self, pathway: Pathway, band: Sampler, in_repr: Representation, out_repr: Representation) -> Tensor:
        group = self.gspace.fibergroup
        subgroup = self.subgroups.get(pathway.name)
        permutations = self._permutations(band, subgroup) if self.basis == "pixel" else None
        if permutations is not None:
            irrep = group.irrep(*(pathway.irrep or ())) if pathway.kind == "irrep" else None
            size = out_repr.size * in_repr.size * len(band.points)
            pixels = torch.eye(size, dtype=torch.float64).view(size, out_repr.size, in_repr.size, -1)
            return isotypic_projection(pixels, in_repr, out_repr, permutations, irrep)
        if subgroup:
            irreps = irreps_up_to(group, self.frequencies)
            return fixed_kernels(band, self.gspace, in_repr, out_repr, subgroup, irreps)
        return isotypic_kernels(band, self.gspace, in_repr, out_repr, group.irrep(*(pathway.irrep or ())))

    def _permutations(self, band: Any, subgroup: Subgroup | None) -> dict[GroupElement, NDArray[Any]] | None:
        """How a finite group moves the pixels, ``None`` for others and for those that leave the grid."""
        group = self.gspace.fibergroup
        if group.continuous if subgroup is None else subgroup.order < 0:
            return None
        elements = group.elements if subgroup is None else subgroup.elements
        permutations = {g: grid_permutation(self.gspace, g, band.points) for g in elements}
        exact = {g: p for g, p in permutations.items() if p is not None}
        return exact if len(exact) == len(permutations) else None

    @property
    def unbreakable(self) -> bool:
        """Whether there is no symmetry to break, and nothing was asked to break it."""
        return self.gspace.fibergroup.order() == 1 and len(self.pathways) == 1

    @cached_property
    def residual(self) -> tuple[Pathway, ...]:
        """All pathways but the equivariant one."""
        return self.pathways[1:]


def _equal_span(frame: Frame, blocks: Sequence[IrrepBlock], equivariant: Tensor) -> bool:
    """Whether kernels between irreps, copied to all their places, span what the layer's own equivariant kernels do."""
    if sum(block.copies * len(block.kernels) for block in blocks) != len(equivariant):
        return False
    # a random combination lies inside another space by chance only
    draws = torch.randn(len(equivariant), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = replace(frame, pictures=None).coordinates(torch.einsum("k,kois->ois", draws, equivariant)[None])
    inside = 0.0
    for outs, ins, kernels in blocks:
        basis = orthonormal(kernels.flatten(1))
        for a in outs:
            for b in ins:
                block = image[:, a : a + kernels.shape[1], b : b + kernels.shape[2]].flatten(1)
                inside += float((block @ basis.T).square().sum())
    total = float(image.square().sum())
    return total - inside <= SPAN_TOLERANCE**2 * total
