"""The coefficients of a mixture's summands, added all pairs at once, are what each pair's filters say they are."""

from __future__ import annotations

import copy

import pytest
import torch
from escnn import gspaces
from escnn.nn import FieldType

from escnn_relax.nn import MixedR2Conv, MixedR3Conv
from escnn_relax.nn.kernels.block_products import BlockProducts
from escnn_relax.symmetry.kernels import pathway_kernels
from escnn_relax.symmetry.groups.irreps import irreps_up_to

#: float64, the same numbers added in another order
ROUNDING = 1e-10


def interleaved():
    space = gspaces.flipRot2dOnR2(4)
    fields = FieldType(
        space, [space.regular_repr, space.trivial_repr, *irreps_up_to(space.fibergroup, 1), space.regular_repr]
    )
    return MixedR2Conv(fields, fields, 3, subgroups=[(None, 2), (1, 1), (None, 1)])


def planar():
    space = gspaces.rot2dOnR2(8)
    fields = FieldType(space, 3 * [space.regular_repr])
    return MixedR2Conv(fields, fields, 3, subgroups=[4, 2])  # without the trivial group some kernels are nobody's


def in_space():
    space = gspaces.flipRot3dOnR3(1)
    fields = FieldType(space, 2 * irreps_up_to(space.fibergroup, 1)[:4])
    return MixedR3Conv(fields, fields, 3, subgroups=[("so3",), (True, False, 1), ("cone", 1)])


def by_pairs_of_irreps():
    """As the kernels of larger fields are."""
    space = gspaces.flipRot2dOnR2(4)
    fields = FieldType(space, 2 * [space.regular_repr])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pathway_kernels, "BLOCK_THRESHOLD", 0)
        return MixedR2Conv(fields, fields, 3, subgroups=[(None, 2), (1, 1), (None, 1)])


@pytest.fixture(
    params=[interleaved, planar, in_space, by_pairs_of_irreps], ids=lambda make: make.__name__, scope="module"
)
def kernel(request):
    torch.manual_seed(0)
    return request.param().double().kernel


def drawn(kernel):
    return {name: torch.randn(kernel.dimensions[name], dtype=torch.float64) for name in kernel.pathways}


def by_filters(kernel, weights):
    """The kernel of each pair of representations, from the dense filters of each summand in turn."""
    found = {}
    for name, vector in weights.items():
        for block in kernel.blocks[name]:
            pair = block.in_name, block.out_name
            coefficients = vector[block.start : block.stop].view(block.outputs * block.inputs, -1)
            found[pair] = found.get(pair, 0) + torch.einsum("fk,kois->fois", coefficients, kernel.filters(name, pair))
    return found


def by_sum(kernel, weights):
    vector, found = kernel.combine(weights), {}
    for block in kernel.union.blocks["shared"]:
        coefficients = vector[block.start : block.stop].view(block.outputs * block.inputs, -1)
        found[block.in_name, block.out_name] = torch.einsum(
            "fk,kois->fois", coefficients, kernel.union.basis(block) @ kernel.spatial
        )
    return found


def gap(kernel, weights):
    one, other = by_filters(kernel, weights), by_sum(kernel, weights)
    assert one and set(one) <= set(other)
    return max(float((other[pair] - one.get(pair, 0)).abs().max()) for pair in other)


@pytest.mark.parametrize("which", [slice(None), slice(1), slice(1, None), slice(2, 3)])
def test_sum_is_that_of_the_filters(kernel, which):
    weights = drawn(kernel)
    some = {name: weights[name] for name in kernel.pathways[which]}
    assert some and gap(kernel, some) < ROUNDING
    name = next(reversed(some))
    moved = some | {name: torch.roll(some[name], 1)}  # the twin: the same numbers, each in its neighbour's place
    before, after = by_filters(kernel, some), by_sum(kernel, moved)
    assert max(float((after[pair] - before.get(pair, 0)).abs().max()) for pair in after) > 0.01


def test_matrices_are_those_of_the_state(kernel):
    """What is loaded later takes effect; the indices do not lie in the state."""
    kernel, weights = copy.deepcopy(kernel), drawn(kernel)
    before = kernel.combine(weights)
    tables = [
        n
        for n in kernel.state_dict()
        if n.startswith(("tables.", "block_tables.")) and not n.endswith(("taken", "placed"))
    ]
    assert tables and not any("sums" in n for n in kernel.state_dict())
    changed = {n: 2 * v if n in tables else v for n, v in kernel.state_dict().items()}
    kernel.load_state_dict(changed)
    assert float((kernel.combine(weights) - before).abs().max()) > 0.01
    assert gap(kernel, weights) < ROUNDING


def test_summands_forgotten(kernel):
    kernel, weights = copy.deepcopy(kernel), drawn(kernel)
    kept = kernel.pathways[1:]
    wanted = kernel.combine({n: weights[n] for n in kept})
    kernel.keep(kept)
    assert tuple(kernel.sums) == kept
    assert torch.equal(kernel.combine({n: weights[n] for n in kept}), wanted)


def test_second_derivatives(kernel):
    """It is linear, and its gradient can be differentiated again."""
    weights = {name: w.requires_grad_() for name, w in drawn(kernel).items()}
    total = kernel.combine(weights)
    along = torch.randn_like(total).requires_grad_()
    gradients = torch.autograd.grad(total @ along, list(weights.values()), create_graph=True)
    others = drawn(kernel)
    product = sum(g @ others[n] for n, g in zip(weights, gradients))
    (back,) = torch.autograd.grad(product, along)
    assert torch.allclose(back, kernel.combine(others), atol=ROUNDING)


def test_tables_of_both_kinds_are_covered():
    """Dense matrices, and blocks of those by pairs of irreps: else the tests above would say little."""
    kinds = {
        type(kernel._stored(part.table))
        for kernel in (planar().kernel, by_pairs_of_irreps().kernel)
        for of in kernel.combinations.values()
        for parts in of.values()
        for part in parts
        if part.table is not None
    }
    assert BlockProducts in kinds and any(issubclass(kind, torch.Tensor) for kind in kinds)
