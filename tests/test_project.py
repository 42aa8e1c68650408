"""Back to the larger group."""

import pytest
import torch
from escnn import gspaces, nn

from escnn_relax.errors import FieldTypeError, UnsupportedModuleError
from escnn_relax.morphism.project import project
from escnn_relax.morphism.relax import relax
from escnn_relax.morphism.restrict import restrict
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.symmetry.equivariance import equivariance_error
from escnn_relax.symmetry.grid_action import axes_matrix, fiber_matrix, move_points

D4 = gspaces.flipRot2dOnR2(4)
TYPE = nn.FieldType(D4, [D4.quotient_repr((None, 2)), D4.irrep(1, 1), D4.trivial_repr])


def network():
    return nn.SequentialModule(
        nn.R2Conv(TYPE, TYPE, 3, padding=1), nn.IIDBatchNorm2d(TYPE), nn.R2Conv(TYPE, TYPE, 5, padding=2)
    )


def test_is_the_group_average():
    """On a group that acts exactly on the grid, projecting is averaging over the group: an oracle without bases."""
    conv = nn.R2Conv(TYPE, TYPE, 5, recompute=True).double()
    on_h = restrict(conv, (None, 2))
    torch.nn.init.normal_(on_h.weights)
    back = project(on_h, like=conv)
    kernel = on_h.expand_parameters()[0].detach()
    average = torch.zeros_like(kernel)
    for g in D4.fibergroup.elements:
        moved = move_points(kernel, axes_matrix(D4, g))
        average += torch.einsum("po,oixy,iq->pqxy", fiber_matrix(TYPE, g, kernel), moved, fiber_matrix(TYPE, ~g, kernel))
    average /= 8
    found = back.expand_parameters()[0].detach()
    assert (found - average).norm() < 1e-6 * average.norm()
    lost = ((kernel - average).norm() / kernel.norm()).item()
    assert abs(back.projection[0].lost - lost) < 1e-6 and lost > 0.1


def test_projection_is_idempotent_and_undoes_restriction():
    net = network()
    net(TYPE(torch.randn(4, TYPE.size, 9, 9)))
    for id in [(1, 2), (None, 1)]:
        back = project(restrict(net, id), like=net)
        assert all(r.lost < 1e-5 and r.lost_bias < 1e-5 for r in back.projection) and len(back.projection) == 2
        for (name, a), (_, b) in zip(net.named_parameters(), back.named_parameters()):
            assert torch.allclose(a, b, atol=1e-4), name
        for (name, a), (_, b) in zip(net[1].named_buffers(), back[1].named_buffers()):
            assert torch.equal(a, b), name
        x = TYPE(torch.randn(2, TYPE.size, 9, 9))
        assert torch.allclose(net.eval()(x).tensor, back.eval()(x).tensor, atol=1e-4)
        net.train()


def test_projected_network_is_equivariant_again():
    net = network().eval()
    on_h = restrict(net, (None, 2))
    for p in on_h.parameters():
        torch.nn.init.normal_(p)
    on_h.eval()
    back = project(on_h, like=net)
    assert equivariance_error(back).max < 2e-5
    x = torch.randn(2, TYPE.size, 9, 9)
    lost = (back(TYPE(x)).tensor - on_h(on_h.in_type(x)).tensor).norm() / back(TYPE(x)).tensor.norm()
    assert lost > 0.1


def test_relaxed_layers():
    relaxed = relax(network())
    with torch.no_grad():
        for w in relaxed[0].weights.values():
            w.normal_()
    back = project(relaxed)
    assert type(back[0]) is nn.R2Conv and equivariance_error(back.eval()).max < 2e-5
    assert abs(back.projection[0].lost - relaxed[0].breaking_energy ** 0.5) < 1e-6
    assert back.projection[1].lost == 0.0


def test_relax_and_restrict_span_the_same_kernels():
    small = nn.FieldType(D4, [D4.irrep(1, 1), D4.quotient_repr((None, 4))])
    conv = nn.R2Conv(small, small, 3)
    for id in [(1, 2), (3, 1)]:
        on_h = restrict(conv, id)
        relaxed = RelaxedR2Conv.from_strict(conv, subgroups=[id])
        kernels = [_span(on_h.weights, lambda: on_h.expand_parameters()[0], on_h.weights)]
        rows = []
        for w in relaxed.weights.values():
            rows.append(_span(w, lambda: relaxed.expand_parameters()[0], *relaxed.weights.values()))
        a, b = kernels[0], torch.cat(rows)
        ranks = [int(torch.linalg.matrix_rank(m, rtol=1e-4)) for m in (a, b, torch.cat([a, b]))]
        assert len(set(ranks)) == 1, ranks


def _span(weight, kernel, *others):
    """One kernel for each coefficient of ``weight``, the others zero."""
    rows = []
    with torch.no_grad():
        for o in others:
            o.zero_()
        for k in range(weight.numel()):
            weight[k] = 1.0
            rows.append(kernel().flatten().double())
            weight[k] = 0.0
    return torch.stack(rows)


def test_bad_input():
    with pytest.raises(UnsupportedModuleError, match="relax it first"):
        project(network())
    net = network()
    with pytest.raises(FieldTypeError):
        project(restrict(nn.SequentialModule(net[0]), (None, 2)), like=net)
