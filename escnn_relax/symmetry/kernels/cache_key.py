"""What the kernels of a relaxation depend on, as one hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import escnn
import numpy as np
import torch
from escnn.group import GroupElement, Representation
from escnn.gspaces import GSpace
from numpy.typing import NDArray
from torch import Tensor

from .pathway import Pathway
from .sampling import Band, FiberBand

__all__ = ["KERNEL_VERSION", "cache_key"]


#: Raised by hand whenever the same layer would come out with other kernels than before: new versions then never read
#: what older ones wrote, and edits that change no kernel throw nobody's away. ``tests/symmetry/test_kernel_version.py``
#: fails when the kernels change and this does not.
KERNEL_VERSION = 1


@lru_cache(maxsize=1)
def _fingerprint() -> bytes:
    """Of what builds kernels: our version of them, and the libraries that solve for them."""
    return hashlib.sha256(f"{KERNEL_VERSION} {escnn.__version__} {torch.__version__}".encode()).digest()


class PathwayPlan(Protocol):
    """What a hash of kernels asks of their plan; :class:`.Relaxation` has it."""

    @property
    def gspace(self) -> GSpace: ...

    @property
    def pathways(self) -> tuple[Pathway, ...]: ...

    @property
    def basis(self) -> str: ...

    @property
    def frequencies(self) -> int | None: ...

    @property
    def generators(self) -> Mapping[str | None, Sequence[tuple[GroupElement, NDArray[Any] | None]]]: ...


def cache_key(
    relaxation: PathwayPlan,
    band: Band | FiberBand,
    in_repr: Representation,
    out_repr: Representation,
    equivariant: Tensor,
) -> str:
    """A hash of all that :meth:`Relaxation.bases <escnn_relax.symmetry.kernels.pathway_kernels.Relaxation.bases>`
    depends on.

    Groups, subgroups and representations enter by their matrices on generating elements, to six digits, and the
    equivariant kernels by value; names alone would not tell one axis from another, and a group's irreps are determined
    up to a change of basis only.
    """
    gspace = relaxation.gspace
    group = gspace.fibergroup
    digest = hashlib.sha256(_fingerprint())

    def add(*values: object) -> None:
        for value in values:
            if isinstance(value, np.ndarray):
                value = (value.shape, (np.round(value.astype(np.float64), 6) + 0.0).tobytes())  # no negative zeros
            digest.update(repr(value).encode() + b"|")

    def add_actions(generators: Sequence[tuple[GroupElement, NDArray[Any] | None]]) -> None:
        for element, action in generators:
            if action is not None:
                add(np.asarray(action))
            for representation in (in_repr, out_repr):
                add(np.asarray(representation(element)))

    add(type(gspace).__name__, type(group).__name__, group.name)
    add(relaxation.basis, relaxation.frequencies, band.key, in_repr.irreps, out_repr.irreps)
    add_actions(relaxation.generators[None])
    for pathway in relaxation.pathways:
        add(pathway.name, pathway.kind, pathway.irrep)
        if pathway.kind == "subgroup":
            add_actions(relaxation.generators[pathway.name])
    digest.update(str(tuple(equivariant.shape)).encode())
    digest.update(equivariant.contiguous().numpy().data)
    return digest.hexdigest()
