"""What the reader of a symmetry test should know beside its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from .exact_group import ExactGroup
from .gradient_sums import GradientSums
from .pathway_test import PathwayTest

__all__ = ["notes"]

#: A network whose strict kernels have a squared gradient of at most so many times its mean for independent samples has
#: converged.
CONVERGED = 4.0
#: Elements by which a vector is told from other irreps.
ELEMENTS = 64


def notes(
    tests: Sequence[PathwayTest],
    gradient_sums: GradientSums,
    group: ExactGroup,
    opened: bool,
    inputs: bool,
    worst: float,
    loose: bool,
    converged: float,
) -> tuple[str, ...]:
    """Sentences, the most important first."""
    sentences = []
    name = group.gspace.fibergroup.name
    if loose:
        sentences.append(f"Gradients depart by {worst:.1%} from the law of a strict network; nothing was tested.")
        if not gradient_sums.uneven:
            sentences.append(
                "Likely causes are one-sided padding and code of your own: look at equivariance_error of each part."
            )
    sentences += [f"{name}: {message}" for name, message in gradient_sums.uneven.items()]
    if not group.whole and not opened:
        sentences.append(f"{name}: only {group.order} of its elements are exact on the grid; p-values are of these.")
    if opened:
        sentences.append(f"Pathways are open: the test is one of the {group.order} elements that they keep.")
    if math.isnan(worst):
        sentences.append(
            "The type of the input is not known, so that the network's strictness was not checked: pass in_type=."
        )
    inexact = [t for t in tests if not math.isnan(t.explained_effect)]
    if inexact:
        sentences.append(
            "Effects beyond the exact elements, and what the pixels explain: the same after turning each sample by a"
            " random element, interpolated."
        )
        sentences += [
            f"  {t.layer} {t.pathway}: {t.inexact_effect:.1e}, explained {t.explained_effect:.1e}" for t in inexact
        ]
    if gradient_sums.repeated:
        sentences.append(
            f"{gradient_sums.repeated} samples came again; they share the random element of their first appearance."
        )
    broken = [t for t in tests if t.broken]
    off = _off_centre(tests, broken, gradient_sums, group)
    if off:
        sentences.append(off)
    alike = "" if group.whole or opened else _alike(tests, broken, group)
    if alike:
        sentences.append(alike)
    if broken and not inputs:
        sentences.append(
            "Broken may be the question or the law of the inputs alone: inputs=True tells, where it can be told."
        )
    if broken and inputs:
        sentences += _causes(broken, converged)
    return tuple(sentences)


def _off_centre(
    tests: Sequence[PathwayTest], broken: Sequence[PathwayTest], gradient_sums: GradientSums, group: ExactGroup
) -> str:
    """A sentence where only vectors are broken, and in every layer: images that are not centred look like that."""
    irreps = {t.pathway: t.irrep for t in broken}
    if not broken or any(irrep is None for irrep in irreps.values()):
        return ""
    kinds = {name: group.gspace.fibergroup.irrep(*irrep) for name, irrep in irreps.items()}
    vectors = {name for name, psi in kinds.items() if _is_vector(group, psi)}
    layers = {t.layer for t in broken if t.pathway in vectors}
    alike = all(_is_vector(group, psi, exact=True) for psi in kinds.values())
    if not alike or not layers or layers != {t.layer for t in tests if t.testable}:
        return ""
    sentence = (
        "Only the vectors (frequency 1) are broken, in every layer: off-centre images look like that; check centring,"
        " one-sided "
    )
    sentence += "padding and strides before the network."
    if gradient_sums.offset is not None:
        sentence += (
            f" The pixels' variance sits {', '.join(f'{o:+.2f}' for o in gradient_sums.offset)} pixels off the middle"
            " (along the axes)."
        )
    return sentence


def _alike(tests: Sequence[PathwayTest], broken: Sequence[PathwayTest], group: ExactGroup) -> str:
    """A sentence about irreps that exact elements cannot tell apart: on pixels, one may show what is another's."""
    irreps = {t.pathway: group.gspace.fibergroup.irrep(*t.irrep) for t in tests if t.testable and t.irrep is not None}
    traces = {name: np.array([float(psi(g).trace()) for g in group.elements]) for name, psi in irreps.items()}
    names, pairs = {t.pathway for t in broken}, []
    for n, first in enumerate(traces):
        for second in list(traces)[n + 1 :]:
            if {first, second} & names and abs(float((traces[first] * traces[second]).mean())) > 0.5:
                pairs.append(f"{first} and {second}")
    if not pairs:
        return ""
    return f"Exact elements move alike {', '.join(pairs)}: through the pixels one of them may show what is the other's."


def _causes(broken: Sequence[PathwayTest], converged: float) -> list[str]:
    """Inputs alone, or the question."""
    layers = sorted({t.layer for t in broken if t.cause != "question"})
    if not layers:
        question = (
            "The inputs alone are not contradicted, as far as half the squared norm of the outputs tells: it is the"
            " question that breaks the symmetry."
        )
        return [question]
    sentence = (
        f"The inputs alone lack the symmetry already ({', '.join(layers)}); whether the question does cannot be told"
        " from this: "
    )
    if converged <= CONVERGED:
        converged_weights = (
            "but the strict weights have converged, and what is left in a broken pathway then comes from the question,"
            " as far as the strict network fits."
        )
        return [sentence + converged_weights]
    return [sentence + "train the strict network and test it again; what is left then comes from the question."]


def _is_vector(group: ExactGroup, psi: Any, exact: bool = False) -> bool:
    """Whether an irrep is the action on points of the plane or of space, as far as all elements go, or the exact
    ones."""
    d, space = group.gspace.dimensionality, group.gspace
    if d != psi.size or not d:
        return False
    elements = group.elements if exact else tuple(islice(space.fibergroup.testing_elements(), ELEMENTS))
    return all(abs(float(psi(g).trace()) - float(space.basespace_action(g).trace())) < 1e-6 for g in elements)
