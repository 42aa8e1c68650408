"""The examples run: the demo's parts in short, and as a slow test the demo as a user calls it."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
matplotlib.use("Agg")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_demo_in_short(examples, tmp_path):
    import demo

    results = [demo.learn(("half-turn", 0, 11))]
    assert results[0]["kept"][0] in ("C4", "C2", "none") and 0 <= results[0]["hardened"] <= 1
    assert len(demo.claims(results[0])) == 3
    demo.draw(4 * results, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_claims_can_fail(examples):
    """The demo's checks refuse a network that kept nothing."""
    import demo
    from escnn_relax import relax, report

    network = relax(demo.DigitNet(10))
    for layer in (network.conv1, network.conv2, network.conv3):
        for weight in layer.weights.values():
            weight.data.normal_()
        layer.effective_dimension.fill_(10.0)
    result = {"report": report(network), "kept": ["none"] * 3, "change": 1.0}
    scores = {"strict": 0.9, "relaxed": 0.5, "hardened": 0.1}
    for task, failing in (("rot", 3), ("half-turn", 2), ("turn", 4), ("upright", 1)):
        claims = demo.claims({"task": task, **result, **scores})
        assert sum(not holds for _, holds in claims) >= failing


def test_table_of_runs_in_short(examples):
    import table_of_runs

    for network in ("overlapping", "relaxed"):
        options = {"epochs": 2, "burn_in": 0, "refresh_every": 1}
        result = table_of_runs.run(("rot", network, 0, options))
        assert table_of_runs.row(result).startswith(f"| rot | {network} | 0 |") and "evidence" in result


@pytest.mark.slow
def test_demo_as_called_by_a_user(tmp_path):
    subprocess.run([sys.executable, str(EXAMPLES / "demo.py"), "--out", str(tmp_path)], check=True)
    assert (tmp_path / "demo.png").exists()
