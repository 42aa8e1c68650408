"""Back to the larger group."""

import pytest
import torch
from escnn import gspaces, nn
from escnn.group import dihedral_group
from nonempty import each

from escnn_relax.errors import FieldTypeError, UnsupportedModuleError
from escnn_relax.morphism.project import project
from escnn_relax.morphism.relax import relax
from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import equivariance_error
from escnn_relax.symmetry.grid.field_action import axes_matrix, fiber_matrix, move_points
from fields import SINGLE

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
    back, done = project(on_h, like=conv, return_report=True)
    kernel = on_h.expand_parameters()[0].detach()
    average = torch.zeros_like(kernel)
    for g in D4.fibergroup.elements:
        moved = move_points(kernel, axes_matrix(D4, g))
        average += torch.einsum(
            "po,oixy,iq->pqxy", fiber_matrix(TYPE, g, kernel), moved, fiber_matrix(TYPE, ~g, kernel)
        )
    average /= 8
    found = back.expand_parameters()[0].detach()
    assert (found - average).norm() < SINGLE * average.norm()
    lost = ((kernel - average).norm() / kernel.norm()).item()
    assert abs(done[0].lost - lost) < SINGLE and lost > 0.1


def test_projection_is_idempotent_and_undoes_restriction():
    net = network()
    net(TYPE(torch.randn(4, TYPE.size, 9, 9)))
    for id in [(1, 2), (None, 1)]:
        back, done = project(restrict(net, id), like=net, return_report=True)
        assert all(r.lost < 1e-5 and r.lost_bias < 1e-5 for r in done) and len(done) == 2
        for (name, a), (_, b) in each(zip(net.named_parameters(), back.named_parameters(), strict=True)):
            assert torch.allclose(a, b, atol=1e-4), name
        for (name, a), (_, b) in each(zip(net[1].named_buffers(), back[1].named_buffers(), strict=True)):
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
    back, done = project(relaxed, return_report=True)
    assert type(back[0]) is nn.R2Conv and equivariance_error(back.eval()).max < 2e-5
    assert abs(done[0].lost - relaxed[0].breaking_energy ** 0.5) < 1e-6
    assert done[1].lost == 0.0


def relaxed_layers():
    """An escnn layer of each other kind that can be relaxed."""
    octa, fiber = gspaces.octaOnR3(), gspaces.no_base_space(dihedral_group(4))
    solid = nn.FieldType(octa, [octa.irrep(1), octa.trivial_repr])
    flat = nn.FieldType(fiber, [fiber.irrep(1, 1), fiber.regular_repr])
    return {
        "transposed": nn.R2ConvTransposed(TYPE, TYPE, 3, stride=2, padding=1, output_padding=1, recompute=True),
        "transposed, groups": nn.R2ConvTransposed(TYPE + TYPE, TYPE + TYPE, 3, groups=2, recompute=True),
        "volume": nn.R3Conv(solid, solid, 3, padding=1, padding_mode="circular", recompute=True),
        "volume, transposed": nn.R3ConvTransposed(solid, solid, 3, recompute=True),
        "linear": nn.Linear(flat, flat, recompute=True),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["transposed", "transposed, groups", "volume", "volume, transposed", "linear"])
def test_every_relaxed_layer(name, training):
    """The residual is orthogonal to the equivariant kernels, so what remains are these, and what is lost the rest."""
    strict = relaxed_layers()[name].double()
    relaxed = relax(strict.train(training))
    with torch.no_grad():
        for parameter in relaxed.parameters():
            parameter.normal_()
    x = torch.randn(2, strict.in_type.size, *(4,) * relaxed.d, dtype=torch.float64)
    back, (record,) = project(relaxed, return_report=True)
    assert type(back) is type(strict) and back.training == training and back.in_type == strict.in_type
    whole, kept = relaxed.expand_parameters()[0], relaxed.pathway_kernel("equivariant")
    assert (back.expand_parameters()[0].flatten() - kept.flatten()).norm() < 1e-10 * kept.norm()
    assert abs(record.lost - float((whole - kept).norm() / whole.norm())) < 1e-6 and record.lost > 0.1
    assert abs(record.norm - float(whole.norm())) < 1e-6 * record.norm
    with torch.no_grad():
        assert (relaxed(relaxed.in_type(x)).tensor - back(back.in_type(x)).tensor).norm() > 0.1
        for pathway, weight in relaxed.weights.items():
            weight.mul_(pathway == "equivariant")
        assert torch.allclose(relaxed(relaxed.in_type(x)).tensor, back(back.in_type(x)).tensor, rtol=0, atol=1e-10)
    if (
        name != "transposed"
    ):  # padded on one side only, see test_restrict_transposed.py::test_output_padding_is_one_sided
        assert equivariance_error(back, size=5 if relaxed.d else None).max < 2e-5


def test_bad_input():
    with pytest.raises(UnsupportedModuleError, match="relax it first"):
        project(network())
    net = network()
    with pytest.raises(FieldTypeError):
        project(restrict(nn.SequentialModule(net[0]), (None, 2)), like=net)
