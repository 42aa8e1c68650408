"""What the kernels of a relaxation depend on, as one hash."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import escnn
import numpy as np
import torch
from escnn.group import GroupElement, Representation
from torch import Tensor

from .band import Band, FiberBand
from .decomposition import generating_elements
from .subgroups import subgroup

if TYPE_CHECKING:
    from .relaxation import Relaxation

__all__ = ["cache_key"]


@lru_cache(maxsize=1)
def _fingerprint() -> bytes:
    """Of the code that builds kernels, so that a new version of it never reads what an older one wrote."""
    here = Path(__file__).parent
    digest = hashlib.sha256(f"{escnn.__version__} {torch.__version__}".encode())
    for path in [here.parent / "_escnn.py", *sorted(here.glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.digest()


def cache_key(
    relaxation: Relaxation,
    band: Band | FiberBand,
    in_repr: Representation,
    out_repr: Representation,
    equivariant: Tensor,
) -> str:
    """A hash of all that :meth:`Relaxation.bases <escnn_relax.symmetry.relaxation.Relaxation.bases>` depends on.

    Groups, subgroups and representations enter by their matrices on generating elements, to six digits, and the
    equivariant kernels by value; names alone would not tell one axis from another, and a group's irreps are determined up
    to a change of basis only.
    """
    gspace = relaxation.gspace
    group = gspace.fibergroup
    digest = hashlib.sha256(_fingerprint())

    def add(*values: object) -> None:
        for value in values:
            if isinstance(value, np.ndarray):
                value = (value.shape, (np.round(value.astype(np.float64), 6) + 0.0).tobytes())  # no negative zeros
            digest.update(repr(value).encode() + b"|")

    def add_action(element: GroupElement) -> None:
        if gspace.dimensionality:
            add(np.asarray(gspace.basespace_action(element)))
        for representation in (in_repr, out_repr):
            add(np.asarray(representation(element)))

    add(type(gspace).__name__, type(group).__name__, group.name)
    add(relaxation.basis, relaxation.frequencies, band.key, in_repr.irreps, out_repr.irreps)
    for element in generating_elements(group):
        add_action(element)
    for pathway in relaxation.pathways:
        add(pathway.name, pathway.kind, pathway.irrep)
        if pathway.kind == "subgroup":
            kept = subgroup(gspace, pathway.subgroup)
            for h in generating_elements(kept.group):
                add_action(kept.embed(h))
    digest.update(str(tuple(equivariant.shape)).encode())
    digest.update(equivariant.contiguous().numpy().data)
    return digest.hexdigest()
