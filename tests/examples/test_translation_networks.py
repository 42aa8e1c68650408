"""The configurations of the layer-wise-equivariance paper have the published numbers of parameters."""

import sys
from pathlib import Path

import pytest
import torch
from fields import SINGLE


from translation_networks import LargestGrid, Network  # noqa: E402

PUBLISHED = {"FC": 133_635_690, "CONV": 338_770, "F-FC": 1_542_625, "S-CONV": 287_910, "S-FC": 831_820}


@pytest.mark.parametrize("kinds", PUBLISHED)
def test_published_numbers_of_parameters(kinds):
    assert sum(p.numel() for p in Network(kinds, channels=3).parameters()) == PUBLISHED[kinds]


def test_a_prediction_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    model, x = Network("F-FC+CONV", alpha=1).eval(), torch.randn(4, 1, 32, 32)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=SINGLE)


def moves(model, size=32, translations=((1, 0), (16, 16), (3, -7))):
    """Relative change of the outputs under translations of the torus."""
    torch.manual_seed(1)
    x = torch.randn(3, 1, size, size)
    with torch.no_grad():
        y = model(x)
        return max(float((model(x.roll(by, (2, 3))) - y).norm() / y.norm()) for by in translations)


@pytest.mark.parametrize(
    "kinds, blind", [("CONV", True), ("S-CONV", True), ("CONV+S-CONV", False), ("F-FC", False), ("FC", False)]
)
def test_convolutions_alone_are_blind_to_translations(kinds, blind):
    """Two of them in a block may choose different grids."""
    torch.manual_seed(0)
    change = moves(Network(kinds, alpha=1).eval())
    assert change < 1e-5 if blind else change > 1e-3


def test_with_one_grid_for_all_they_are_not(monkeypatch):
    monkeypatch.setattr(LargestGrid, "forward", lambda self, x: self.layer(x)[..., ::2, ::2])
    torch.manual_seed(0)
    assert moves(Network("CONV", alpha=1).eval()) > 1e-3


@pytest.mark.parametrize("size", [32, 16])
@pytest.mark.parametrize(
    "kinds, blind", [("CONV", True), ("S-CONV", True), ("CONV+S-CONV", True), ("F-FC+CONV", False), ("FC", False)]
)
def test_a_fixed_grid_is_blind_to_quadrants(kinds, blind, size):
    torch.manual_seed(0)
    model, half = Network(kinds, alpha=1, size=size, grid="fixed").eval(), size // 2
    change = moves(model, size, ((half, half), (half, 0)))
    assert change < 1e-5 if blind else change > 1e-3
    assert moves(model, size, ((1, 0),)) > 1e-3


@pytest.mark.parametrize("kinds", ["CONV", "F-FC"])
def test_sizes_that_cannot_be_halved(kinds):
    for size, blocks in ((24, None), (0, None), (6, 4)):
        with pytest.raises(ValueError, match=f"size: expected an image that can be halved.*got {size}"):
            Network(kinds, alpha=1, size=size, blocks=blocks)
    for size, blocks in ((24, 2), (12, 4), (8, None)):
        assert Network(kinds, alpha=1, size=size, blocks=blocks)(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_the_evidence_covers_them():
    from escnn_relax import Evidence

    torch.manual_seed(0)
    model = Network("F-FC+CONV", alpha=1, blocks=2)
    evidence = Evidence(model, relaxed_only=False)
    assert not evidence.uncovered
    evidence.refresh([(torch.randn(8, 1, 32, 32), torch.randint(10, (8,)))])


def test_the_published_loop(monkeypatch):
    """Weights always, precisions from the tenth epoch on after every fifth; MAP leaves them."""
    from published_loop import train_as_published
    from torch.utils.data import DataLoader, TensorDataset

    from escnn_relax import Evidence

    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))), 8)
    refreshed, refresh = [], Evidence.refresh
    monkeypatch.setattr(Evidence, "refresh", lambda self, *args: refreshed.append(1) or refresh(self, *args))
    for learns, epochs, count in ((True, 16, 2), (True, 17, 3), (True, 2, 1), (False, 16, 0)):
        model = Network("CONV", alpha=1, size=8, blocks=2, grid="fixed")
        before = {n: p.clone() for n, p in model.named_parameters()}
        evidence = Evidence(model, num_data=8, relaxed_only=False)
        start = dict(evidence.log_precision)
        refreshed.clear()
        train_as_published(model, loader, evidence, epochs, learns)
        assert len(refreshed) == count, "epochs 10 and 15, and the last one"
        assert (evidence.log_precision != start) == learns
        assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters() if "weight" in n)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--published-loop"]])
def test_the_table_in_short(tmp_path, options):
    """A quick run from end to end on made-up digits."""
    import subprocess

    import numpy as np

    generator = np.random.default_rng(0)
    digits = {f"x_{p}": generator.integers(0, 255, (300, 28, 28), dtype=np.uint8) for p in ("train", "test")}
    digits |= {f"y_{p}": generator.integers(0, 10, 300, dtype=np.uint8) for p in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **digits)
    script = Path(__file__).parents[2] / "examples" / "translation_table.py"
    command = [sys.executable, "-W", "ignore", str(script), "--data", str(tmp_path), "--quick", *options]
    command += ["--runs", str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "table.md")]
    subprocess.run(command, check=True, timeout=900)
    written = (tmp_path / "table.md").read_text()
    assert (
        "published" in written
        and written.count("(1 runs)") == 12
        and ("quick, published loop" in written) == bool(options)
    )
