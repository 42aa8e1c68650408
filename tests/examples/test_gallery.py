"""The gallery: each script has a title, one claim under 150 lines, claims that can fail, and runs as a user calls
it."""

import ast
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Record

import matplotlib
import pytest
import torch
from fields import SINGLE
from nonempty import each

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("plot_*.py"))
#: Run by other files.
ELSEWHERE = {"plot_anisotropic_diffusion", "plot_mixed_layers", "plot_searches", "plot_symmetry_discovery"}
matplotlib.use("Agg")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("name", SCRIPTS)
def test_form(name):
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    prose = [number for number, line in enumerate(lines) if line.startswith("#")]
    cells = [number for number in prose if lines[number] == "# %%"]
    # the formatter keeps two blank lines on both sides of a cell's prose, where one pair would do
    assert len(lines) - len(prose) - 3 * len(cells) <= 150, "an example is short"
    assert len(cells) >= 3 and all(lines[n + 2] == "# " + "-" * (len(lines[n + 1]) - 2) for n in each(cells)), (
        "in cells"
    )
    tree = ast.parse(source)
    title, line, *text = ast.get_docstring(tree).splitlines()
    assert line == len(title) * "=", "sphinx-gallery takes its title from the docstring"
    assert any(f"python examples/{name}.py [--out examples/output]" in part for part in text), "it says how to run it"
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    asserts = [node for node in ast.walk(functions["check"]) if isinstance(node, ast.Assert)]
    assert asserts and "main" in functions, "it asserts its claim"
    assert "__file__" not in source.replace("digits.__file__", ""), "a script that sphinx-gallery runs has none"


def layers(*energies):
    """A report of layers with these energies of ψ1 and ψ2."""
    names = ("equivariant", "irrep_1", "irrep_2")
    shares = [(1 - sum(e), *e) for e in energies]
    pathways = [[Record(name=n, energy=e) for n, e in zip(names, share)] for share in shares]
    return Record(layers=[Record(pathways=p, breaking_energy=1 - s[0]) for p, s in zip(pathways, shares)])


def refuses(check, right, **wrong):
    """The claims hold for ``right``, a list of arguments, and fail for each change of its first argument."""
    check(*right)
    for key, value in each(wrong.items()):
        changed = copy.deepcopy(right[0])
        changed[key] = value
        with pytest.raises(AssertionError):
            check(changed, *right[1:])


def test_claim_of_five_lines(examples):
    from plot_five_lines import check

    right = {"before": 0.0, "strict": 0.5, "relaxed": 1.0, "change": 0.0, "report": layers((0, 0), (0, 0.1), (0, 0.1))}
    refuses(check, [right], before=0.1, strict=0.9, relaxed=0.5, change=0.3, report=layers((0, 0), (0.1, 0.1)))
    refuses(check, [right], report=layers((0, 0), (0, 0)))


def test_claim_of_the_symmetry_test(examples):
    from plot_symmetry_test import check

    def found(left, *broken):
        names = [(layer, irrep) for layer in ("conv1", "conv2", "conv3") for irrep in ("irrep_1", "irrep_2")]
        tests = [Record(layer=a, pathway=b, testable=True, broken=b in broken, adjusted_p_value=0.1) for a, b in names]
        return Record(tests=tests, network=Record(name=left))

    right = {"rot": found("C4"), "half-turn": found("C2", "irrep_2"), "turn": found("trivial", "irrep_1", "irrep_2")}
    refuses(check, [right], rot=found("C2", "irrep_2"), turn=found("trivial", "irrep_1"))
    refuses(check, [right], rot=found("C2"), turn=Record(tests=[], network=Record(name="trivial")))
    late = found("C2", "irrep_2")
    late.tests[1].broken = False
    refuses(check, [right], **{"half-turn": late})


def test_claim_of_symmetry_kept(examples):
    from plot_symmetry_kept import check

    right = {"energies": [[0.2, 0.1, 0.1], [1e-4, 1e-4, 1e-4]], "change": 0.05, "accuracy": 0.9}
    refuses(check, [right], energies=[[0.2, 0.1, 0.1], [0.03, 0, 0]], change=0.5, accuracy=0.2)
    refuses(check, [right], energies=[[1e-4, 1e-4, 1e-4], [1e-4, 1e-4, 1e-4]])


def test_claim_of_symmetry_broken(examples):
    from plot_symmetry_broken import check

    late = {"strict": 0.25, "relaxed": 0.9, "report": layers((0, 0), (0, 0), (0.02, 0.01))}
    early = {"strict": 0.85, "relaxed": 0.95, "report": layers((0.02, 0.01), (0.02, 0.01), (0.01, 0.01))}
    refuses(
        check,
        [{"turn": late, "upright": early}],
        turn=late | {"report": early["report"]},
        upright=early | {"strict": 1},
    )
    refuses(
        check,
        [{"turn": late, "upright": early}],
        turn=late | {"relaxed": 0.3},
        upright=early | {"report": late["report"]},
    )


def test_claim_of_restriction(examples):
    import plot_restrict_and_train as example

    right = {"same": 0.0, "parameters": [10, 20], "first": [1.0, 0.5], "C4": [0.4, 0.1], "C8": [0.5, 0.4]}
    right |= {"left before": 0.0, "left": 0.2, "change": 0.0}
    wrong = {"same": 0.1, "parameters": [10, 10], "first": [1.0, 0.3], "C8": [0.4, 0.1], "left": 0.0, "change": 0.1}
    refuses(example.check, [right], **wrong)
    result = example.learn(1)  # too short for the claim about the loss, but not for the identities
    assert result["same"] < 1e-4 and result["left before"] < 1e-4 < result["left"] and result["change"] < 1e-4


def test_claim_of_the_spectrum(examples):
    from plot_layer_spectrum import blossom, check

    right = {3: [0.6, 0.0, 0.0, 0.4], 2: [0.6, 0.0, 0.4, 0.0]}
    check(right)
    for wrong in ([0.5, 0.1, 0.0, 0.4], [1.0, 0.0, 0.0, 0.0]):
        with pytest.raises(AssertionError):
            check(right | {3: wrong})
    kernel = blossom(4)
    assert torch.allclose(torch.rot90(kernel, 1, (-2, -1)), kernel, atol=SINGLE)
    assert not torch.allclose(torch.rot90(blossom(3), 1, (-2, -1)), blossom(3), atol=1e-2)


def test_claim_of_the_noise(examples):
    from plot_learned_noise import check

    right = {"true": [0.1, 0.3], "learned": [0.101, 0.3], "train": [0.08, 0.24], "determined": [50, 50], "count": 160}
    check([right])
    for wrong in ({"learned": [0.1, 0.4]}, {"learned": [0.08, 0.3]}, {"train": [0.1, 0.3]}):
        with pytest.raises(AssertionError):
            check([right | wrong])


def test_claim_of_the_voxels(examples):
    import plot_voxels as example

    x, y = example.task(6, None)
    assert x.shape == (6, 1, 10, 10, 10) and set(y.tolist()) == {0, 1}
    names = ("equivariant", "irrep_1", "irrep_-1", "irrep_2", "irrep_3")
    of = lambda *shares: Record(layers=[Record(pathways=[Record(name=n, energy=e) for n, e in zip(names, shares)])])
    kept = lambda name: Record(subgroup=Record(name=name))
    right = {"strict": 0.5, "relaxed": 1.0, "report": of(0.9, 0.05, 0.0, 0.05, 0.0), "kept": kept("C4")}
    refuses(example.check, [right], strict=0.9, relaxed=0.5, report=of(0.9, 0.0, 0.05, 0.05, 0.0), kept=kept("C4_x"))


def test_training_loops_are_one(examples, tmp_path):
    import plot_training_loops as example
    from digits import DigitNet, task

    from escnn_relax import relax

    data, results = task("upright", 0), {}
    short = data._replace(train=tuple(part[:200] for part in data.train))
    for loop in (example.by_fit, example.by_hand, example.by_hooks):
        torch.manual_seed(0)
        model = relax(DigitNet(10, fields=1))
        results[loop.__name__] = loop(model, short.loader(), short.evidence_loader(100), example.FIRST + 2)
    by_fit, *others = results.values()
    for evidence, losses in each(others):
        assert losses == by_fit[1] and evidence.log_precision == by_fit[0].log_precision
    example.draw(results, tmp_path / "loops.png")
    next(others[0][0].model.parameters()).data.add_(1e-6)
    with pytest.raises(AssertionError):
        example.check(results)


def test_exact_evidence_of_the_example(examples):
    """The density by the outputs' covariance is that by completing the square in the weights."""
    import plot_evidence_exact as example

    torch.manual_seed(0)
    J, y, log_precision = torch.randn(7, 3).double(), torch.randn(7).double(), {"a": 0.3, "b_irrep": 1.2}
    value, weights = example.exact({"a": J[:, :2], "b_irrep": J[:, 2:]}, y, log_precision)
    delta = torch.tensor([0.3, 0.3, 1.2]).double().exp()
    H = J.T @ J / example.NOISE**2 + torch.diag(delta)
    w = torch.linalg.solve(H, J.T @ y / example.NOISE**2)
    assert torch.allclose(torch.cat(list(weights.values())), w)
    fit = (
        -0.5 * ((y - J @ w) / example.NOISE).square().sum()
        - 7 * torch.tensor(example.NOISE * (2 * torch.pi) ** 0.5).log()
    )
    by_weights = fit - 0.5 * (delta * w**2).sum() + 0.5 * delta.log().sum() - 0.5 * torch.logdet(H)
    assert value == pytest.approx(float(by_weights), abs=1e-5)

    keeps = {name: [-20.0, -1.0, 0.0] for name in ("truth", *example.CURVATURES)}
    breaks = {name: [10.0, 50.0, 0.0] for name in keeps}
    refuses(example.check, [keeps, breaks], exact=[-20.0, -1.0, 0.1], expand=[5.0, -1.0, 0.0])
    with pytest.raises(AssertionError):
        example.check(keeps, keeps)


def test_exported_forms_compute_the_same(examples, tmp_path):
    import plot_export as example
    from digits import DigitNet

    from escnn_relax import harden, prepare_export, relax

    torch.manual_seed(0)
    model = relax(DigitNet(4, fields=1))
    torch.nn.init.normal_(model.conv3.weights["irrep_1"], std=0.1)
    final, done = harden(model.eval(), return_report=True)
    final, x = final.eval(), torch.randn(3, 1, 8, 8)
    assert [layer.kind for layer in done] == ["R2Conv", "R2Conv", "MergedConvolution"]
    with torch.no_grad():
        for form in (example.exported, example.scripted):
            assert torch.allclose(form(prepare_export(final), x[:2])(x), model(x), atol=1e-5)

    right = {"errors": {"relaxed": 0.0, "hardened": 0.0, "TorchScript": 0.0}, "between": {"TorchScript": 0.0}}
    right |= {"kinds": ["R2Conv", "MergedConvolution"], "accuracy": 0.9}
    wrong = {"between": {"TorchScript": 0.1}, "kinds": ["R2Conv", "R2Conv"], "accuracy": 0.25}
    refuses(example.check, [right], errors={"hardened": 0.1}, **wrong)


def test_site_writes_a_page_for_each_room(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES / "site"))
    import rooms

    import escnn_relax

    rooms.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"index", *rooms.ROOMS}
    pages = {name: (tmp_path / f"{name}.rst").read_text() for name in rooms.ROOMS}
    folders = {path.parent.name for path in Path(escnn_relax.__file__).parent.glob("*/__init__.py")}
    assert folders <= set(rooms.ROOMS), "a new room needs its page"
    documented = [line for text in pages.values() for line in text.splitlines() if line.startswith(".. auto")]
    names = [line.split(":: ")[1] for line in documented if line.startswith((".. autoclass", ".. autofunction"))]
    assert {f"escnn_relax.{name}" for name in escnn_relax.__all__} <= set(names)
    assert len(set(names)) == len(names) > 70, "each name once"
    assert not any(part.startswith("_") for name in each(names) for part in name.split(".")), "public ones only"
    index = (tmp_path / "index.rst").read_text().splitlines()
    assert {line.strip()[1:] for line in index if line.startswith("   ~")} == set(names), "all of them in the tables"


def test_site_has_each_example_in_one_section(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES / "site"))
    import sections

    monkeypatch.setattr(sections, "STAGE", tmp_path / "stage")
    sections.stage()
    assert sorted(path.stem for path in (tmp_path / "stage").glob("*/plot_*.py")) == SCRIPTS
    assert sections.position("anywhere/plot_five_lines.py") == 0
    monkeypatch.setattr(sections, "ORDER", sections.ORDER[1:])
    with pytest.raises(ValueError, match="plot_five_lines"):
        sections.stage()


def test_notebooks_need_no_checkout(monkeypatch, tmp_path):
    """The cells before the script write its helpers and data; with these alone beside it, it can be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "site"))
    import sections

    path = tmp_path / "plot_symmetry_discovery.ipynb"
    path.write_text(json.dumps({"cells": []}))
    sections.complete(path)
    first, *helpers = (c["source"][0] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    lines = {text.split("\n")[0] for text in helpers}
    assert {"%%writefile planted.py", "%%writefile runs.py", "%%writefile symmetry_discovery_runs.py"} <= lines
    for text in each(helpers):
        head, source = text.split("\n", 1)
        (tmp_path / head.split()[1]).write_text(source)
    script = (EXAMPLES / "plot_symmetry_discovery.py").read_text()
    (tmp_path / "cells.py").write_text(f"{first}\n{script.split('# %%')[0].split('import annotations')[1]}\nCASES")
    subprocess.run([sys.executable, "-W", "ignore", "cells.py"], cwd=tmp_path, check=True)
    stored = (EXAMPLES / "symmetry_discovery.jsonl").read_bytes()
    assert (tmp_path / "symmetry_discovery.jsonl").read_bytes() == stored


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ELSEWHERE])
def test_as_called_by_a_user(name, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(tmp_path)], check=True, env=environment)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_claims_of_three_networks(examples):
    """Each from a strict checkpoint to a hardened export, in under 60 lines that are not blank."""
    import plot_actor_critic
    import plot_residual_network
    import plot_unet

    same = {"same": 0.0, "export": 0.0}
    right = same | {"mirrored": 0.0, "score": 1.0}
    refuses(plot_residual_network.check, [right], same=0.1, export=0.1, mirrored=0.1, score=0.6)
    refuses(plot_unet.check, [same | {"C4": 0.7, "relaxed": 0.85}], same=0.1, export=0.1, C4=0.8, relaxed=0.75)
    right = {"relaxed": (1.0, 0.01), "C4": (0.25, 1.0), "export": 0.0}
    refuses(plot_actor_critic.check, [right], relaxed=(0.3, 0.01), C4=(1.0, 1.0), export=0.1)
    refuses(plot_actor_critic.check, [right], relaxed=(1.0, 0.9), C4=(0.25, 0.1))
    for name in ("residual_network", "unet", "actor_critic"):
        lines = (EXAMPLES / f"plot_{name}.py").read_text(encoding="utf-8").splitlines()
        assert sum(bool(line) and not line.startswith("#") for line in lines) < 60
