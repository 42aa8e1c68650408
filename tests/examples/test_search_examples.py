"""The examples of mixed layers and searches run, in short; their claims can fail; the table counts rightly."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
matplotlib.use("Agg")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.slow
def test_mixed_layers_in_short(examples, tmp_path):
    import plot_mixed_layers as example

    results = {name: example.learn((name, 0, 1)) for name in ("rot", "turn")}
    for result in results.values():
        assert result["start"] < 1e-4 and result["same"] < 1e-3 and len(result["kinds"]) == 3
    example.draw(results, tmp_path / "mixed.png")
    assert (tmp_path / "mixed.png").stat().st_size > 10_000
    with pytest.raises(AssertionError):  # one epoch decides nothing: the claims can fail
        example.check(results)


@pytest.mark.slow
def test_searches_in_short(examples, tmp_path, monkeypatch, capsys):
    import plot_searches as example

    monkeypatch.setattr(sys, "argv", ["plot_searches.py", "--quick", "--out", str(tmp_path)])
    example.main()
    assert (tmp_path / "searches.png").stat().st_size > 10_000 and "kept:" in capsys.readouterr().out


def test_claims_of_the_searches_can_fail(examples):
    import plot_searches as example
    from types import SimpleNamespace as Record

    def outcome(first, last, strict=0.25, score=0.9):
        evolved = Record(winner=Record(genome=(first, "C2", last)))
        found = Record(architecture={"conv1": first, "conv3": last})
        return evolved, found, {"strict C4": strict, "evolved": score, "differentiated": score}

    example.check(*outcome("C4", "trivial"))
    for wrong in (outcome("C4", "C4"), outcome("C2", "C2"), outcome("C4", "C2", 0.8), outcome("C4", "C2", 0.25, 0.5)):
        with pytest.raises(AssertionError):
            example.check(*wrong)


def test_table_of_searches(examples):
    import search_table as example

    line = {"data": "mnist", "mode": "compute", "method": "evolve", "size": "cpu", "evidence": None, "parameters": 100}
    line |= {"passes": 4, "seconds": 10.0, "select": 0.9}
    lines = [{**line, "seed": s, "test": t, "genome": ["D4", "C4"]} for s, t in enumerate((0.9, 0.94, 0.92))]
    text = example.table(lines)
    assert "| EquiNAS_E, accuracy | 3 | 92.00 ± 2.00 | 100 | 4.0 | 10 |  | D4 C4 |" in text
    assert "rotated_mnist" not in text and "equal compute" in text and "10000 digits to train on" in text
    assert "groups D4, C4, trivial." in text and "Seed by seed" not in text
    lines += [
        {**line, "method": "relaxed", "seed": s, "test": t, "genome": None} for s, t in enumerate((0.91, 0.92, 0.93))
    ]
    # differences 1, -2, 1
    verdict = "relaxed by evidence against EquiNAS_E, accuracy, the best search without it: +0.0 ± 1.7 points."
    assert verdict in example.table(lines)


def test_the_table_is_that_of_the_runs(examples):
    """Five seeds of every method, none dropped."""
    import search_table as example

    lines = example.stored(EXAMPLES / "search_runs.jsonl")
    assert len(lines) == len(example.METHODS) * len(example.MODES) * len(example.DATA) * 5
    assert example.table(lines) in (EXAMPLES / "search_table.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_table_is_made_and_resumed(examples, tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12000), ("test", 300)):
        arrays |= {f"x_{part}": random.integers(0, 256, (count, 28, 28), dtype=np.uint8)}
        arrays |= {f"y_{part}": random.integers(0, 10, count, dtype=np.uint8)}
    for name in ("mnist", "rotated_mnist"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    runs, out = tmp_path / "runs.jsonl", tmp_path / "table.md"
    options = ["--data", str(tmp_path), "--runs", str(runs), "--out", str(out), "--only", "D4", "evolve"]
    options += ["--size", "quick", "--seeds", "0"]
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / "search_table.py"), *options]
    subprocess.run(command, check=True, capture_output=True)
    lines = runs.read_text().splitlines()
    assert len(lines) == 8 and {json.loads(line)["mode"] for line in lines} == {"compute", "parameters"}
    runs.write_text("\n".join(lines[:5]) + "\n")  # as if it had been killed
    subprocess.run(command, check=True, capture_output=True)
    again = runs.read_text().splitlines()
    assert again[:5] == lines[:5] and len(again) == 8 and "EquiNAS_E, accuracy" in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plot_mixed_layers", "plot_searches"])
def test_as_called_by_a_user(name, tmp_path):
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(tmp_path)], check=True)
    assert list(tmp_path.glob("*.png"))
