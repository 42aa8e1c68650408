"""What each kind of factor says of its block is what the dense matrix says."""

import pytest
import torch
from nonempty import each

from escnn_relax.curvature.factors import (
    DenseFactor,
    DiagonalFactor,
    EigenFactor,
    GramFactor,
    KroneckerFactor,
    SketchedFactor,
)
from escnn_relax.curvature.factors.sketch import Sketch
from escnn_relax.errors import ArgumentError, CoverageError, CurvatureError

#: Weights of three outputs that read six inputs.
OUTPUTS, INPUTS = 3, 6
P = OUTPUTS * INPUTS
SCALE, DELTA = 0.7, 0.3
#: Relative, float64.
EXACT = 1e-9


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size, seed=0):
    rows = normal(size + 2, size, seed=seed)
    return rows.T @ rows


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def sketch():
    return Sketch(orthogonal(INPUTS)[:, :2], torch.tensor([5.0, 2.0]).double(), torch.full((4,), 0.5).double())


#: By seed; those of several outputs share what the inputs say.
KINDS = {
    "dense": lambda seed: DenseFactor("w", positive(P, seed)),
    "gram": lambda seed: GramFactor("w", normal(4, P, seed=seed)),
    "diagonal": lambda seed: DiagonalFactor("w", positive(P, seed).diagonal()),
    "kronecker": lambda seed: KroneckerFactor("w", positive(INPUTS, 9), positive(OUTPUTS, seed)),
    "eigen": lambda seed: EigenFactor(
        "w", orthogonal(INPUTS), orthogonal(OUTPUTS), normal(OUTPUTS, INPUTS, seed=seed).square()
    ),
    "sketched": lambda seed: SketchedFactor("w", sketch(), positive(OUTPUTS, seed)),
}
APART = ["eigen", "kronecker", "sketched"]
SUMMED = [kind for kind in KINDS if kind != "eigen"]
any_kind = pytest.mark.parametrize("kind", KINDS)


def near(one, other):
    return one.shape == other.shape and bool((one - other).norm() <= EXACT * other.norm())


@any_kind
def test_spectrum(kind):
    factor = KINDS[kind](1)
    assert factor.dimension == P and near(factor.spectrum.sort().values, torch.linalg.eigvalsh(factor.dense()))
    assert near(factor.axis_values.sort().values, factor.spectrum.sort().values) or kind == "sketched"


@any_kind
def test_vectors_are_whitened(kind):
    factor, vectors = KINDS[kind](1), normal(5, P, seed=2)
    white = factor.whiten(vectors, SCALE, DELTA)
    inverse = torch.linalg.inv(SCALE * factor.dense() + DELTA * torch.eye(P, dtype=torch.float64))
    assert near(white @ white.T, vectors @ inverse @ vectors.T)


@any_kind
def test_modes(kind):
    """Eigenvalues as often as they occur; what of b lies along each, by its norm under the resolvent anywhere."""
    factor, eye = KINDS[kind](1), torch.eye(P, dtype=torch.float64)
    weights, slope = normal(2, P, seed=2)
    values, counts, squares = factor.modes(weights, slope, SCALE, DELTA)
    H = SCALE * factor.dense()
    b = (H + DELTA * eye) @ weights - slope
    assert near(values.repeat_interleave(counts.long()).sort().values, torch.linalg.eigvalsh(H))
    for shift in (0.01, 0.1, 0.5, 2.0, 10.0, 50.0):
        assert float((squares / (values + shift)).sum()) == pytest.approx(
            float(b @ torch.linalg.solve(H + shift * eye, b)), rel=EXACT
        )


@pytest.mark.parametrize("kind", APART)
def test_restriction(kind):
    """Some directions of the inputs, one block for each axis of the outputs."""
    factor, B, weights = KINDS[kind](1), normal(4, INPUTS, seed=2), normal(OUTPUTS, INPUTS, seed=3)
    curvature, multiples, linear = factor.restriction(B, weights, SCALE, DELTA)
    inner = torch.kron(factor.output_axes.T.contiguous(), B)  # (outputs * 4, P)
    expected = inner @ (SCALE * factor.dense()) @ inner.T
    whole = (multiples[:, None, None] * curvature) if multiples is not None else curvature
    assert whole.shape == (OUTPUTS, 4, 4) and near(torch.block_diag(*whole), expected)
    right = inner @ (SCALE * factor.dense() @ weights.flatten() + DELTA * weights.flatten())
    assert near(linear, right.view(OUTPUTS, 4))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in APART])
def test_without_outputs_there_is_no_restriction(kind):
    factor = KINDS[kind](1)
    assert factor.output_axes is None and factor.kronecker_factors is None
    with pytest.raises(CurvatureError, match="w: no outputs apart in a .*Factor; take its dense matrix"):
        factor.restriction(normal(2, INPUTS), normal(OUTPUTS, INPUTS), SCALE, DELTA)


@pytest.mark.parametrize("kind", SUMMED)
def test_outputs_are_summed(kind):
    outputs, weights = [KINDS[kind](seed) for seed in (1, 2, 3)], [0.5, 2.0, 3.0]
    total = type(outputs[0]).weighted_sum(outputs, weights)
    assert total.name == "w" and type(total) is type(outputs[0])
    assert near(total.dense(), sum(w * output.dense() for w, output in zip(weights, outputs)))
    diagonals = total.diagonals(outputs)
    assert diagonals.shape == (3, P)
    assert near(torch.tensor(weights).double() @ diagonals, total.spectrum)
    assert near(diagonals.sum(1), torch.stack([output.dense().trace() for output in outputs]))
    if kind == "dense":
        return  # takes any
    with pytest.raises(CurvatureError, match="w: expected a .*Factor for each output"):
        total.diagonals([outputs[0], KINDS["eigen"](1)])


@pytest.mark.parametrize("kind", ["dense", "gram", "kronecker"])
def test_diagonals_are_those_in_the_eigenvectors_of_the_sum(kind):
    """Where they are told apart by their eigenvalues."""
    outputs = [KINDS[kind](seed) for seed in (1, 2)]
    total = type(outputs[0]).weighted_sum(outputs, [1.0, 2.0])
    values, axes = torch.linalg.eigh(total.dense())
    distinct = values > 1e-6
    assert distinct.sum() == (8 if kind == "gram" else P)
    order = total.spectrum.argsort()
    for output, found in each(zip(outputs, total.diagonals(outputs), strict=True)):
        expected = (axes.T @ output.dense() @ axes).diagonal()
        assert near(found[order][distinct], expected[distinct])


def test_many_roots_are_summed_as_matrices():
    outputs = [GramFactor("w", normal(10, P, seed=seed)) for seed in (1, 2)]
    total = GramFactor.weighted_sum(outputs, [1.0, 2.0])
    assert isinstance(total, DenseFactor)
    assert near(total.dense(), outputs[0].dense() + 2 * outputs[1].dense())


def test_an_eigenbasis_has_no_sum_and_no_average():
    factor = KINDS["eigen"](1)
    with pytest.raises(CurvatureError, match="outputs cannot be told apart in an EigenFactor; use 'expand'"):
        EigenFactor.weighted_sum([factor, factor], [1.0, 1.0])
    for attempt in (factor.tensors, lambda: factor.rebuild([factor.values])):
        with pytest.raises(ArgumentError, match="not possible with an EigenFactor.*use 'expand'"):
            attempt()


@pytest.mark.parametrize("kind", ["dense", "gram", "diagonal"])
def test_running_averages_of_sums(kind):
    """Twice as many samples as before: the old sum counts twice, as if it were of as many."""
    old, new = (KINDS[kind](seed) for seed in (1, 2))
    mean = new.average(old.tensors(), 0.25, 2.0)
    assert near(mean.dense(), 0.25 * 2 * old.dense() + 0.75 * new.dense())
    with pytest.raises(CoverageError, match="previous curvature of w has another form; refresh once with keep=0"):
        new.average([tensor[1:] for tensor in old.tensors()], 0.25, 2.0)


def test_running_averages_of_kronecker_factors():
    """A is a mean over rows, B a sum over samples."""
    old, new = (KroneckerFactor("w", positive(INPUTS, seed), positive(OUTPUTS, seed)) for seed in (1, 2))
    mean = new.average(old.tensors(), 0.25, 2.0)
    assert near(mean.A, 0.25 * old.A + 0.75 * new.A) and near(mean.B, 0.25 * 2 * old.B + 0.75 * new.B)


def test_portions_of_minibatches_add_up():
    """A is the mean over 30 rows, of which two minibatches saw 10 and 20."""
    rows, columns = normal(30, INPUTS, seed=1), normal(6, OUTPUTS, seed=2)
    cuts = [(rows[:10], columns[:2]), (rows[10:], columns[2:])]
    whole, *minibatches = (
        KroneckerFactor("w", a.T @ a / len(a), s.T @ s, rows=len(a)) for a, s in [(rows, columns), *cuts]
    )
    portions = [minibatch.portion(whole) for minibatch in minibatches]
    assert near(sum(A for A, _ in portions), whole.A) and near(sum(B for _, B in portions), whole.B)


@pytest.mark.parametrize("kind", ["dense", "diagonal", "kronecker"])
def test_eigenvalues_have_the_gradient_of_the_log_determinant(kind):
    """Against differentiating the determinant of the dense matrix, without any eigenvalue."""
    factor = KINDS[kind](1)
    ours, dense = ([tensor.clone().requires_grad_() for tensor in factor.tensors()] for _ in range(2))
    (factor.smooth_spectrum(ours) + DELTA).log().sum().backward()
    rebuilt = factor.rebuild(dense).dense()
    torch.linalg.slogdet((rebuilt + rebuilt.T) / 2 + DELTA * torch.eye(P, dtype=torch.float64))[1].backward()
    for one, other in each(zip(ours, dense, strict=True)):
        assert near(one.grad, other.grad)


def test_eigenvalues_of_a_block_without_full_rank_have_it_too():
    """Its zeros are rounding, of either sign; what they would say does not reach the rows that the block is of."""
    ours, dense = (normal(4, P).requires_grad_() for _ in range(2))
    factor = GramFactor("w", ours)
    (factor.smooth_spectrum(factor.tensors()) + DELTA).log().sum().backward()
    torch.linalg.slogdet(dense.T @ dense + DELTA * torch.eye(P, dtype=torch.float64))[1].backward()
    assert near(ours.grad, dense.grad)
