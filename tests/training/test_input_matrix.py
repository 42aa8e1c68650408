"""Loaders of every kind with targets of every kind into networks of every kind: each cell has the loss and the
eigenvalues of the dense oracle, or raises an error of ours."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from input_cases import LOADERS, MODELS, REFUSED, TARGETS, C, N, dense, inputs, network
from nonempty import each

from escnn_relax import Evidence
from escnn_relax.errors import RelaxError

#: float64: the two sides sum the same numbers in another order, and eigenvalues are those of a matrix that is off by as
#: much
ROUNDING = 1e-10


def expected(loader, target, model):
    """Whether the cell is one that has a right answer."""
    return model not in REFUSED and TARGETS[target].loss is not None


#: A third of all combinations, in which each pair of kinds occurs.
CELLS = [
    (loader, target, model)
    for i, loader in enumerate(LOADERS)
    for j, target in enumerate(TARGETS)
    for k, model in enumerate(MODELS)
    if (i + j + k) % 3 == 0
]
QUICK = [cell for n, cell in enumerate(CELLS) if n % 41 == 0]


def test_the_matrix_is_one():
    assert len(CELLS) >= 500 and 12 <= len(QUICK) <= 20
    pairs = {(a, b) for cell in CELLS for a, b in ((cell[0], cell[1]), (cell[0], cell[2]), (cell[1], cell[2]))}
    everything = len(LOADERS) * len(TARGETS) + len(LOADERS) * len(MODELS) + len(TARGETS) * len(MODELS)
    assert len(pairs) == everything
    assert sum(expected(*cell) for cell in CELLS) > 100 and sum(not expected(*cell) for cell in CELLS) > 100


@pytest.mark.parametrize(
    "loader, target, model",
    [pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow, id=" | ".join(cell)) for cell in CELLS],
)
def test_cell(loader, target, model):
    wanted, x = TARGETS[target], inputs(model)
    net, space = network(model, wanted.outputs), MODELS[model].space
    y = wanted.target(space)
    w = None if wanted.weight is None else wanted.weight(space)

    def refresh():
        evidence = Evidence(net, wanted.likelihood, curvature="exact", relaxed_only=False)
        evidence.refresh(LOADERS[loader](x, y, w))
        return evidence

    if not expected(loader, target, model):
        with pytest.raises(RelaxError):
            refresh()
        return
    evidence = refresh()
    net.eval()
    output = net(*x.values())
    output = getattr(output, "logits", output).detach()
    loss = float(wanted.loss(output, y, w))
    assert evidence.num_data == N and abs(evidence.mean_loss * N - loss) < ROUNDING * max(1.0, abs(loss))
    hessian = wanted.hessian(output) if wanted.hessian else torch.func.hessian(lambda f: wanted.loss(f, y, w))(output)
    blocks = dense(net, x, hessian.reshape(output.numel(), -1))
    if model == "normalised":  # scales and shifts of batch normalisation are covered only if asked for
        blocks = {name: block for name, block in blocks.items() if not name.startswith("norm")}
    assert set(blocks) == set(evidence.eigenvalues) and len(blocks) >= 4
    for name, block in each(blocks.items()):
        right, found = torch.linalg.eigvalsh(block), evidence.eigenvalues[name].sort().values
        assert right[-1] > 1e-6 and (found - right.clamp(min=0)).abs().max() < ROUNDING * N * C * right[-1], name
