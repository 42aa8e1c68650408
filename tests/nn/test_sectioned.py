"""Kernels kept by input irrep expand to what the dense stack of them expands to."""

import copy

import pytest
import torch
from escnn import gspaces
from escnn.nn import FieldType, R2Conv
from fields import ROUNDING, distance, field_type, kernels_of, randomise, space
from nonempty import each

from escnn_relax.nn import RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.nn.kernels import dense_copy, sectioned
from escnn_relax.nn.kernels.sectioned import SectionedBasis
from tolerances import accumulated

#: What is left out where a kernel vanishes, and single precision in the dense stack.
LEFT_OUT = 1e-6 + accumulated(torch.float32, 128)


def stack(rows=40, seed=0):
    """Kernels of a regular field of D4 that read one irrep each, in no order, and the representation."""
    regular = space("D4").regular_repr
    change = torch.as_tensor(regular.change_of_basis)
    generator = torch.Generator().manual_seed(seed)
    turned = torch.zeros(rows, 3, 8, 9, dtype=torch.float64)
    ends = [0]
    for id in regular.irreps:
        ends.append(ends[-1] + space("D4").irrep(*id).size)
    for row in range(rows):
        n = int(torch.randint(len(ends) - 1, (), generator=generator))
        part = turned[row, :, ends[n] : ends[n + 1]]
        part.copy_(torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return torch.einsum("kojs,ij->kois", turned, change), regular


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(sectioned, "WORTHWHILE", 0)
    monkeypatch.setattr(dense_copy, "DENSE", 0)


def test_expansion_and_rows(always):
    kernels, regular = stack()
    basis = SectionedBasis.from_dense(kernels, regular)
    assert (
        len(basis.counts) > 1
        and sum(b.numel() for n, b in basis.named_buffers() if "section" in n) < kernels.numel() / 4
    )
    coefficients = torch.randn(5, len(kernels), dtype=torch.float64, requires_grad=True)
    expected = torch.einsum("fk,kois->fois", coefficients, kernels)
    assert distance(basis.expand(coefficients), expected) < ROUNDING
    (gradient,) = torch.autograd.grad(basis.expand(coefficients).square().sum(), coefficients)
    (wanted,) = torch.autograd.grad(expected.square().sum(), coefficients)
    assert distance(gradient, wanted) < ROUNDING
    for start, stop in ((0, 40), (7, 19), (39, 40)):
        assert distance(basis.rows(start, stop), kernels[start:stop]) < ROUNDING
    beside = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    both = expected + torch.einsum("fk,kois->fois", *beside)
    assert distance(basis.expand(coefficients, beside), both) < ROUNDING


@pytest.mark.parametrize("rows", [((3, 17),), ((0, 5), (5, 9), (30, 40)), ((12, 13),)])
def test_some_of_the_rows(always, rows):
    kernels, regular = stack()
    basis = SectionedBasis.from_dense(kernels, regular)
    of = torch.cat([torch.arange(*ends) for ends in rows])
    coefficients = torch.randn(5, len(of), dtype=torch.float64)
    expected = torch.einsum("fk,kois->fois", coefficients, kernels[of])
    assert distance(basis.expand(coefficients, rows=rows), expected) < ROUNDING
    assert distance(basis.expand(coefficients.flip(1), rows=rows), expected) > 0.1 or len(of) == 1
    beside = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    both = expected + torch.einsum("fk,kois->fois", *beside)
    assert distance(basis.expand(coefficients, beside, rows), both) < ROUNDING


def test_kernels_that_read_several_irreps_stay_together(always):
    """The twin: a row across two irreps joins them, one across all leaves nothing to gain."""
    kernels, regular = stack()
    apart = SectionedBasis.from_dense(kernels, regular)
    mixed = kernels.clone()
    mixed[0] += mixed[1:].sum(0)
    assert SectionedBasis.from_dense(mixed, regular) is None
    some = kernels.clone()
    where = torch.zeros(40, dtype=torch.long)
    for n, members in enumerate(apart.order.split(apart.counts)):
        where[members] = n
    other = int((where != where[0]).nonzero()[0])
    some[0] += some[other]
    joined = SectionedBasis.from_dense(some, regular)
    assert len(joined.counts) == len(apart.counts) - 1
    c = torch.randn(2, 40, dtype=torch.float64)
    assert distance(joined.expand(c), torch.einsum("fk,kois->fois", c, some)) < ROUNDING


def test_small_stacks_and_single_irreps_stay_dense():
    kernels, regular = stack()
    assert SectionedBasis.from_dense(kernels, regular) is None
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3, initialize=False)
    assert not any(isinstance(m, SectionedBasis) for m in layer.modules())


@pytest.mark.parametrize("name", ["C8", "D4"])
def test_layers_expand_as_the_dense_ones_do(name, monkeypatch):
    strict = R2Conv(field_type(name, "regular", 2), field_type(name, "interleaved"), 5, padding=2)
    layers = []
    for worthwhile in (0, 10**12):
        monkeypatch.setattr(sectioned, "WORTHWHILE", worthwhile)
        layers.append(RelaxedR2Conv.from_strict(strict).double())
    apart, dense = layers
    assert any(isinstance(m, SectionedBasis) for m in apart.modules())
    assert not any(isinstance(m, SectionedBasis) for m in dense.modules())
    rows, expected = kernels_of(apart), kernels_of(dense)
    assert torch.equal(rows["equivariant"], expected["equivariant"])
    for pathway in each(rows):
        assert distance(rows[pathway], expected[pathway]) < LEFT_OUT
        for a, b in each(zip(apart.kernel.blocks[pathway], dense.kernel.blocks[pathway], strict=True)):
            assert a == b and distance(apart.kernel.basis(a), dense.kernel.basis(b)) < LEFT_OUT
    randomise(apart)
    dense.weights.load_state_dict(apart.weights.state_dict())
    assert distance(apart.kernel(apart.weights), dense.kernel(dense.weights)) < LEFT_OUT
    names = [p.name for p in apart.pathways]
    for some in (names[1:], names[::2], names[-1:], names[:1]):
        parts = [layer.kernel({n: layer.weights[n] for n in some}) for layer in (apart, dense)]
        assert distance(*parts) < LEFT_OUT
    assert distance(copy.deepcopy(apart).kernel(apart.weights), apart.kernel(apart.weights)) == 0


def test_checkpoints_in_another_order_are_refused(always):
    kernels, regular = stack()
    basis, other = SectionedBasis.from_dense(kernels, regular), SectionedBasis.from_dense(stack(seed=1)[0], regular)
    twin = SectionedBasis.from_dense(kernels, regular)
    twin.load_state_dict(basis.state_dict())
    with pytest.raises(RuntimeError, match="another order"):
        twin.load_state_dict(other.state_dict())


@pytest.mark.slow
def test_octahedral_fields_take_a_fraction_of_the_dense_stack():
    s = gspaces.octaOnR3()
    field = FieldType(s, [s.quotient_repr((False, 4)), s.regular_repr])
    layer = RelaxedR3Conv(FieldType(s, [s.regular_repr]), field, 3, initialize=False)
    numbers = sum(b.numel() for b in layer.kernel.buffers())
    dense = sum(layer.kernel.dimensions.values()) * 24 * 27 * 15  # the mean size of the two output fields
    assert numbers < dense / 4


def expanded_both_ways(layer, monkeypatch):
    """By one dense product, and by irrep."""
    kernels = []
    for most in (dense_copy.DENSE, 0):
        with monkeypatch.context() as patch:
            patch.setattr(dense_copy, "DENSE", most)
            kernels.append(layer.expand_parameters()[0])
    return kernels


def small_layer(seed=0):
    torch.manual_seed(seed)
    fields = field_type("D4", "regular", 2)
    layer = randomise(RelaxedR2Conv(fields, fields, 3))
    assert any(isinstance(g, SectionedBasis) for g in layer.kernel.graded.values())
    return layer


def test_a_small_layer_expands_by_one_dense_product_that_follows_its_buffers(monkeypatch):
    monkeypatch.setattr(sectioned, "WORTHWHILE", 0)
    layer = small_layer()
    dense, by_irrep = expanded_both_ways(layer, monkeypatch)
    assert layer.kernel._copies and 0 < distance(dense, by_irrep) < LEFT_OUT, "two ways, one kernel"
    layer.close(layer.pathways[1].name)  # other rows
    assert distance(*expanded_both_ways(layer, monkeypatch)) < LEFT_OUT
    state = {name: 2 * value if "sections" in name else value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)  # written in place
    doubled, wanted = expanded_both_ways(layer, monkeypatch)
    assert distance(doubled, wanted) < LEFT_OUT < distance(doubled, dense)
    layer.double()  # other tensors
    assert (
        distance(*expanded_both_ways(layer, monkeypatch)) < LEFT_OUT
        and layer.expand_parameters()[0].dtype is torch.float64
    )
    assert not copy.deepcopy(layer).kernel._copies


def test_the_dense_product_is_not_kept_of_transformed_buffers(monkeypatch):
    monkeypatch.setattr(sectioned, "WORTHWHILE", 0)
    layer = small_layer()
    buffers = {
        name: torch.stack([b, 3 * b]) for name, b in layer.named_buffers() if "bases" in name or "sections" in name
    }
    call = lambda changed: torch.func.functional_call(layer, changed, (), {"probe": True})
    forward = layer.forward
    layer.forward = lambda probe: layer.expand_parameters()[0]
    once, thrice = torch.vmap(call)(buffers)
    layer.forward = forward
    assert distance(thrice, 3 * once) < LEFT_OUT and not layer.kernel._copies.get(0, dense_copy.DenseCopy())._made
    with torch.autocast("cpu", torch.bfloat16):
        layer.expand_parameters()
    (made,) = [c._made for c in layer.kernel._copies.values()]
    assert made[3].dtype is torch.float32
    with torch.inference_mode():
        assert distance(layer.expand_parameters()[0], expanded_both_ways(layer, monkeypatch)[1]) < LEFT_OUT
    layer.expand_parameters()[0].sum().backward()
