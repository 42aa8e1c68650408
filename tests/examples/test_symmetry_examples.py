"""The examples of planted symmetry run, in short; their claims can fail; the table counts all runs and is resumed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Record

import matplotlib
import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
matplotlib.use("Agg")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_planted_filters_have_exactly_the_planted_symmetry(examples):
    """The noise-free fields, moved by an element of the planted group: the data keep it, and no larger group."""
    import planted

    data = planted.fields("D8", "C4", 0, samples=3, noise=0.0)
    x, y = data.train
    quarter = lambda t: torch.cat(
        [torch.rot90(t[:, :1], 1, (-2, -1)), torch.einsum("ij,njyx->niyx", turn, torch.rot90(t[:, 1:], 1, (-2, -1)))], 1
    )
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    kernel = torch.linalg.lstsq(_patches(x), y.permute(0, 2, 3, 1).flatten(0, 2)).solution
    predicted = _patches(quarter(x)) @ kernel
    wanted = quarter(y).permute(0, 2, 3, 1).flatten(0, 2)
    assert float((predicted - wanted).norm() / wanted.norm()) < 1e-3
    flip = lambda t: torch.flip(t, (-1,)) * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    mirrored = flip(y).permute(0, 2, 3, 1).flatten(0, 2)
    assert float((_patches(flip(x)) @ kernel - mirrored).norm() / mirrored.norm()) > 0.05


def _patches(x):
    wide = torch.nn.functional.pad(x, (2, 2, 2, 2), "circular")
    return torch.nn.functional.unfold(wide, 5).transpose(1, 2).flatten(0, 1)


def test_labels_know_the_planted_subgroup_only(examples):
    """Digits moved by the subgroup keep their label; so the label counts cosets, and each is there."""
    import planted

    for name, labels in (("C4", 2), ("C2", 4), ("D1", 4), ("C1", 8), ("D4", 3)):
        data = planted.turned("D4", name, 0, samples=200)
        assert sorted(data.train[1].unique().tolist()) == list(range(labels))
        assert data.model(data.test[0][:2]).shape == (2, labels)
    image = torch.rand(1, 8, 8)
    turned = planted.moved(image, np.array([[0.0, -1.0], [1.0, 0.0]]))[0]
    assert torch.allclose(turned, torch.rot90(image, 1, (-2, -1)), atol=1e-5)


def test_discovery_in_short(examples, tmp_path, monkeypatch):
    import plot_symmetry_discovery as example
    import symmetry_discovery_runs as runs
    from runs import stored

    records = stored(EXAMPLES / "symmetry_discovery.jsonl")
    assert len({(r["data"], r["start"], r["planted"], r["seed"]) for r in records}) == len(records) >= 200, (
        "no run twice"
    )
    assert runs.table(records) in (EXAMPLES / "symmetry_discovery.md").read_text(), "the table is that of the runs"
    changes = example.grid_changes()
    found = Record(subgroup=Record(name="C4"), margin=1000.0)
    example.check(records, found, changes)
    for wrong in (
        (records, Record(subgroup=Record(name="C2"), margin=1000.0), changes),
        ([{**r, "found": "C1"} for r in records], found, changes),
        (records, found, 8 * [0.0]),
    ):
        with pytest.raises(AssertionError):
            example.check(*wrong)


@pytest.mark.slow
def test_runs_are_resumed(examples, tmp_path):
    from runs import stored

    path, out = tmp_path / "runs.jsonl", tmp_path / "table.md"
    options = ["--runs", str(path), "--out", str(out), "--seeds", "1", "--only", "fields", "SO2"]
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / "symmetry_discovery_runs.py"), *options]
    subprocess.run(command, check=True, capture_output=True)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["planted"] for line in lines] == ["SO2", "C4", "C2", "C1"]
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])  # as if it had been killed while writing
    subprocess.run(command, check=True, capture_output=True)
    assert len(stored(path)) == 4 and "4 of 4 runs" in out.read_text()


def test_claims_of_the_diffusion_can_fail(examples):
    import plot_anisotropic_diffusion as example

    field = torch.randn(1, 12, 12)
    moved = example.step(field, 0.5, 0.5, 0.0)
    turned = example.step(torch.rot90(field, 1, (-2, -1)), 0.5, 0.5, 0.0)
    assert torch.allclose(turned, torch.rot90(moved, 1, (-2, -1)), atol=1e-5)
    assert float(moved.sum()) == pytest.approx(float(field.sum()), rel=1e-4), "nothing is lost"
    model = Record(layer=Record(energies=lambda: {"irrep_1,1": 0.0, "irrep_1,2": 0.0, "irrep_1,3": 0.0}))
    isotropic = (model, None, Record(subgroup=Record(name="O2")))
    example.check({"isotropic": isotropic})
    for name in ("fibres", "fibres and wind"):
        with pytest.raises(AssertionError):
            example.check({name: isotropic})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plot_symmetry_discovery", "plot_anisotropic_diffusion"])
def test_as_called_by_a_user(name, tmp_path):
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(tmp_path)], check=True)
    assert list(tmp_path.glob("*.png"))
