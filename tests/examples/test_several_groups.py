"""The network with several groups in every layer: what each pathway commutes with, and the counts and shares of the
table."""

import json
import sys
from pathlib import Path

import pytest
import torch

import escnn_relax
from escnn_relax.nn import RelaxedTranslation
from tolerances import accumulated

EXAMPLES = Path(__file__).parents[2] / "examples"
#: float32, seven layers.
SAME = 7 * accumulated(torch.float32, 64)


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def network(**options):
    from several_groups import Network, with_several_groups

    strict = Network(1, size=16, **options).eval()
    return strict, with_several_groups(strict, torch.zeros(2, 1, 16, 16)).eval()


def shake(model, mark):
    """Give the pathways whose weights' names contain a mark something to do."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if mark in name and "bias" not in name:
                p.normal_(std=0.3)
    return model


def test_it_starts_as_the_strict_network():
    strict, model = network()
    x = torch.randn(3, 1, 16, 16)
    assert (model(x) - strict(x)).norm() < SAME * strict(x).norm()


@pytest.mark.parametrize("mark, kept", [("equivariant", True), ("weights.trivial", False), ("factored_free", False)])
def test_what_the_network_is_invariant_under(mark, kept):
    """Under quarter turns with GCONV alone, not with the others."""
    model = shake(network()[1], mark)
    x = torch.randn(3, 1, 16, 16)
    error = (model(x.rot90(1, (2, 3))) - model(x)).norm() / model(x).norm()
    assert bool(error < SAME) is kept, float(error)


@pytest.mark.parametrize("mark, kept", [("equivariant", True), ("weights.trivial", True), ("factored_free", False)])
def test_convolutions_commute_with_translations(mark, kept):
    """By the product of the strides, on a torus: exactly, whatever the rest of the batch."""
    model = shake(network(blocks=3, padding_mode="circular")[1], mark)
    features = lambda x: model.features(model.input(x)).tensor
    x = torch.randn(3, 1, 16, 16)
    moved = features(x.roll((4, -8), (2, 3)))
    error = (moved - features(x).roll((2, -4), (2, 3))).norm() / moved.norm()
    assert bool(error < SAME) is kept, float(error)


def test_a_sample_does_not_depend_on_its_batch():
    model = shake(network()[1], "weights")
    x = torch.randn(4, 1, 16, 16)
    assert (model(x)[1] - model(x[1:2])[0]).norm() < SAME * model(x).norm()


def test_relative_dimensions_count_every_weight_once():
    from several_groups import PATHWAYS, relative_dimensions

    model = network()[1]
    layers = [m for m in model.modules() if isinstance(m, RelaxedTranslation)]
    evidence = escnn_relax.Evidence(model, num_data=10)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    everything = {name: float(sizes[name]) for name in evidence.log_precision}
    shares = relative_dimensions(model, everything)
    assert len(shares) == len(layers) == 6
    assert all(s == pytest.approx(dict.fromkeys(PATHWAYS, 1 / 3)) for s in shares), "every weight determined"
    half = {name: value / 2 if "factored_free" in name else value for name, value in everything.items()}
    assert relative_dimensions(model, half)[0]["FC"] == pytest.approx(0.2)


def test_the_table_is_that_of_the_runs(tmp_path):
    import runs
    from several_groups_table import table, tuned

    path = tmp_path / "runs.jsonl"
    same = {
        "data": "MNIST",
        "precision": 1.0,
        "seed": 0,
        "scale": "small",
        "evidence": None,
        "shares": None,
        "accuracy": 0.97,
    }
    shares = [{"GCONV": 0.5, "CONV": 0.5, "FC": 0.0}, {"GCONV": 1.0, "CONV": 0.0, "FC": 0.0}]
    wanted = [{**same, "method": "evidence", "nll": 0.1, "evidence": 0.3, "shares": shares}]
    wanted += [
        {**same, "method": "held out", "nll": nll, "precision": delta}
        for delta, nll in ((1.0, 0.3), (10.0, 0.2), (100.0, 0.4))
    ]
    wanted += [{**same, "method": "MAP", "nll": nll, "precision": delta} for delta, nll in ((1.0, 0.5), (10.0, 0.6))]
    path.write_text("\n".join(map(json.dumps, wanted)) + "\n" + '{"data": "cut o')
    lines = runs.stored(path)
    assert lines == wanted and tuned(lines, "MNIST", "small") == 10.0 and tuned(lines, "CIFAR-10", "small") == 1.0
    written = table(lines)
    assert "| 75 (50–100) |" in written and "| 0.100 / 97.0 (1) |" in written
    assert "| 0.500 / 97.0 (1) | .172 / 97.59 | 0.600 / 97.0 (1), δ = 10 |" in written, (
        "the precision that was best on data held out"
    )


@pytest.mark.slow
def test_in_short(tmp_path):
    """A quick run from end to end on made-up digits."""
    import subprocess

    import numpy as np

    generator = np.random.default_rng(0)
    digits = {f"x_{p}": generator.integers(0, 255, (300, 28, 28), dtype=np.uint8) for p in ("train", "test")}
    digits |= {f"y_{p}": generator.integers(0, 10, 300, dtype=np.uint8) for p in ("train", "test")}
    for name in ("mnist", "rotated_mnist"):
        np.savez(tmp_path / f"{name}.npz", **digits)
    colours = {f"x_{p}": generator.integers(0, 255, (300, 32, 32, 3), dtype=np.uint8) for p in ("train", "test")}
    np.savez(tmp_path / "cifar10_16k.npz", **{**digits, **colours})
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(EXAMPLES / "several_groups_table.py"),
        "--data",
        str(tmp_path),
        "--quick",
    ]
    command += ["--runs", str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "table.md")]
    subprocess.run(command, check=True, timeout=600)
    assert "MAP, δ tuned" in (tmp_path / "table.md").read_text()
