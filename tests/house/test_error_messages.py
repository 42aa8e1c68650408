"""Every error that the package raises on purpose: each ends with what to do, and reads as it stands in the table."""

import ast
import math
import re
from pathlib import Path

import pytest
import torch
from escnn import gspaces, group
from escnn import nn as enn
from nonempty import each
from torch import nn

import escnn_relax
from escnn_relax import (
    Evidence,
    History,
    errors,
    fit,
    harden,
    mix,
    project,
    relax,
    report,
    restrict,
    subgroup,
    subgroups,
    survivors,
)
from escnn_relax import assert_equivariant, carry_optimizer, equivariance_error, relax_translation, symmetry_test
from escnn_relax.errors import ArgumentError, CheckpointError, CoverageError, DataError, FieldTypeError, LikelihoodError
from escnn_relax.errors import (
    NothingToRelaxError,
    NotEquivariantError,
    RelaxError,
    SubgroupError,
    UnsupportedModuleError,
)
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings
from escnn_relax.nn import RelaxedR2Conv, SparseR2Conv

PACKAGE = Path(escnn_relax.__file__).parent
KINDS = {name for name in errors.__all__ if name[0].isupper()}
SPACE, DIHEDRAL = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(4)
GRAY, FIELDS = enn.FieldType(SPACE, [SPACE.trivial_repr]), enn.FieldType(SPACE, [SPACE.regular_repr])


def raised(tree):
    """All constructions of the package's errors, by the names of the classes that may be meant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            of = node.func
            names = {
                n.id for n in ((of.body, of.orelse) if isinstance(of, ast.IfExp) else (of,)) if isinstance(n, ast.Name)
            }
            if names & KINDS:
                yield node


SITES = [
    pytest.param(path, node, id=f"{path.relative_to(PACKAGE)}:{node.lineno}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in raised(ast.parse(path.read_text(encoding="utf-8")))
]


def test_there_are_errors():
    assert len(SITES) > 300


@pytest.mark.parametrize("path, node", SITES)
def test_each_says_what_to_do(path, node):
    given = {k.arg: k.value for k in node.keywords}
    assert "remedy" in given or None in given, ast.unparse(node)
    if isinstance(given.get("remedy"), ast.Constant):
        assert given["remedy"].value.strip() and not re.search(r"[^.]\.$", given["remedy"].value), ast.unparse(node)


def test_nothing_else_is_raised_for_users():
    """No bare assert, and no exception of Python's own but where a protocol of Python's asks for it."""
    allowed = {"AttributeError", "KeyError", "NotImplementedError", "StopIteration"}
    internal = {
        "symmetry/groups/finite_groups.py",
        "symmetry/groups/platonic.py",
        "symmetry/groups/tetrahedral.py",
        "symmetry/groups/twisted.py",
        "symmetry/kernels/kernel_cache.py",
        "symmetry/groups/subgroup_embedding.py",
    }  # as escnn's own groups do, or caught where they arise
    for path in each(sorted(PACKAGE.rglob("*.py"))):
        where = str(path.relative_to(PACKAGE))
        for node in each(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            assert not isinstance(node, ast.Assert), f"{where}:{node.lineno}"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                name = node.exc.func.id
                foreign = name[0].isupper() and name.endswith("Error") and name not in KINDS
                if foreign and where not in internal:
                    assert name in allowed or name.startswith("Reflection"), f"{where}:{node.lineno} {name}"


class Net(nn.Module):
    def __init__(self, fields=FIELDS):
        super().__init__()
        self.convolution, self.pool, self.linear = (
            enn.R2Conv(GRAY, fields, 3),
            enn.GroupPooling(fields),
            nn.Linear(1, 2),
        )

    def forward(self, x):
        return self.linear(self.pool(self.convolution(GRAY(x))).tensor.mean((-2, -1)))


def data(n=24):
    return [(torch.randn(n, 1, 5, 5), torch.arange(n) % 2)]


def model():
    return relax(Net())


def strict():
    return enn.SequentialModule(enn.R2Conv(FIELDS, FIELDS, 3))


def broken():
    layer = RelaxedR2Conv(FIELDS, FIELDS, 3)
    nn.init.normal_(layer.weights["irrep_1"])
    return layer


def evidence(**options):
    return Evidence(model(), num_data=24, **options)


def strange():
    return nn.Linear(1, 1).parameters()


def constant():
    return [(torch.randn(40, 1, 5, 5), torch.zeros(40).long())]


def quick(batches=None, **options):
    return fit(model(), data() if batches is None else batches, epochs=2, burn_in=0, progress=False, **options)


#: What is done, the error, and what its message has to say, in this order.
TABLE = {
    "fit, misspelt option": (lambda: quick(num_date=3), ArgumentError,
                             "fit: it has no argument 'num_date'; did you mean 'num_data'?"),
    "fit, epochs": (lambda: fit(model(), data(), epochs=-1), ArgumentError,
                    "fit: expected epochs.*got.*-1.*; leave out"),
    "fit, share": (lambda: quick(share=0), ArgumentError, "share: expected a fraction.*got 0; leave it out"),
    "fit, iterator": (lambda: fit(model(), iter(data()), epochs=2), DataError,
                      "can be gone through only once; pass a DataLoader"),
    "fit, empty": (lambda: fit(model(), [], epochs=2, progress=False), DataError, "no batch; pass a non-empty"),
    "fit, NaN": (lambda: quick(batches=[(torch.full((24, 1, 5, 5), math.nan), torch.arange(24) % 2)]), DataError, ";"),
    "fit, labels": (lambda: quick(batches=[(torch.randn(4, 1, 5, 5), torch.arange(4))]), RelaxError, "targets.*;"),
    "evidence, strict": (lambda: Evidence(Net()), CoverageError, "no relaxed layer in it; pass escnn_relax.relax"),
    "evidence, likelihood": (lambda: evidence(likelihood="poisson"), LikelihoodError,
                             "one of .*got 'poisson'; pass one of"),
    "evidence, curvature": (lambda: evidence(curvature="kfac"), ArgumentError,
                            "curvature: expected one of.*got 'kfac'; take 'expand'"),
    "evidence, samples": (lambda: evidence(curvature=CurvatureSettings(samples=0)), ArgumentError,
                          "samples: expected.*got 0; leave it out"),
    "evidence, bias": (lambda: evidence(curvature=CurvatureSettings(bias="no")), ArgumentError,
                       "bias: expected 'exact' or 'kronecker', got 'no'; leave it out"),
    "evidence, num_data": (lambda: Evidence(model(), num_data=0), ArgumentError,
                           r"num_data: .*got 0; pass len\(train_set\)"),
    "evidence, noise": (lambda: evidence(noise="output"), ArgumentError,
                        "a noise for each output, got 'categorical'; use noise"),
    "evidence, noise kind": (lambda: evidence(noise="each"), ArgumentError,
                             "noise: expected 'shared' or 'output', got 'each'; leave"),
    "evidence, temperature": (lambda: evidence(noise=NoiseSettings(temperature=0)), ArgumentError,
                              "temperature: expected a positive number, got 0; leave"),
    "evidence, ties": (lambda: evidence(prior=PriorSettings(ties="row")), ArgumentError,
                       "ties: expected one of.*got 'row'; leave it out"),
    "evidence, bounds": (lambda: evidence(prior=PriorSettings(bounds=(2.0, 1.0))), ArgumentError,
                         "bounds: expected.*; leave it out"),
    "evidence, unrefreshed": (lambda: evidence().step(), CoverageError,
                              r"no curvature yet; call refresh\(loader\) first"),
    "evidence, keep": (lambda: evidence().refresh(data(), keep=1), ArgumentError,
                       "keep: expected a fraction below 1, got 1; 0 keeps"),
    "evidence, close": (lambda: evidence().close(["nothing"]), CoverageError, ";"),
    "evidence, state": (lambda: evidence().load_state_dict(Evidence(relax(strict()), num_data=3).state_dict()),
                        CoverageError, "another model.*; load it into"),
    "posterior, link": (lambda: posterior().predict(data()[0][0], link="logit"), ArgumentError,
                        "link: expected 'probit'.*; leave"),
    "relax, plain model": (lambda: relax(nn.Linear(2, 2)), UnsupportedModuleError, ";"),
    "relax, layers": (lambda: relax(Net(), layers=["convolutoin"]), ArgumentError, "did you mean 'convolution'"),
    "relax, subgroup": (lambda: relax(Net(), subgroups=[3]), SubgroupError,
                        "no such subgroup.*got 3 of type int; names are"),
    "relax, basis": (lambda: relax(Net(), basis="pixels"), ArgumentError, "basis to be one of.*; leave it out"),
    "relax, irreps": (lambda: relax(Net(), irreps=[(7,)]), ArgumentError, "no such irrep.*; pass an id"),
    "relax, frequencies": (lambda: relax(Net(), frequencies=-1), ArgumentError, "frequencies.*got -1; leave it out"),
    "relax, nothing": (lambda: RelaxedR2Conv(GRAY, GRAY, 1), NothingToRelaxError, "; leave this layer"),
    "relax, types": (lambda: RelaxedR2Conv(FIELDS, 3, 3), FieldTypeError,
                     "expected out_type to be a FieldType, got int; make one"),
    "relax, arguments": (lambda: RelaxedR2Conv(FIELDS, FIELDS, 3, strides=2), ArgumentError,
                         "strides.*; pass what escnn.nn.R2Conv"),
    "relaxed layer, input": (lambda: broken()(GRAY(torch.randn(1, 1, 5, 5))), FieldTypeError, ";"),
    "restrict, name": (lambda: restrict(strict(), "C3"), SubgroupError, "no subgroup 'C3'.*; did you mean"),
    "restrict, layer": (lambda: restrict(strict(), 2, from_layer="conv"), ArgumentError, "conv.*;"),
    "restrict, plain": (lambda: restrict(nn.Linear(2, 2), 2), RelaxError, ";"),
    "project, without like": (lambda: project(restrict(strict(), 2)), RelaxError, ";"),
    "mix, subgroup": (lambda: mix(strict(), [3]), SubgroupError, ";"),
    "harden, strict": (lambda: harden(strict()), UnsupportedModuleError,
                       "no relaxed layer in it; there is nothing to harden"),
    "harden, to": (lambda: harden(model(), to="stabilizer"), ArgumentError,
                   "to: expected 'stabiliser'.*got 'stabilizer'; pass"),
    "harden, per": (lambda: harden(model(), per="block"), ArgumentError,
                    "per: expected 'depth'.*got 'block'; leave it out"),
    "harden, energy": (lambda: harden(model(), energy=2), ArgumentError,
                       "energy: expected a fraction.*got 2; leave it out"),
    "harden, layer left out": (lambda: harden(model(), to={}), ArgumentError,
                               "to: expected a subgroup for each.*; add 'convolution'"),
    "harden, unknown layer": (lambda: harden(model(), to={"convolution": 2, "conv": 2}), ArgumentError,
                              "did you mean 'convolution'"),
    "harden, data": (lambda: harden(model(), data=data()), ArgumentError,
                     "data without an evidence; pass the evidence too"),
    "report, strict": (lambda: report(strict()), UnsupportedModuleError,
                       "no relaxed layer in it; pass escnn_relax.relax"),
    "report, plot": (lambda: report(model()).plot(quantity="share"), ArgumentError,
                     "quantity: expected.*got 'share'; leave it out"),
    "survivors, strict": (lambda: survivors(strict()), UnsupportedModuleError,
                          "no relaxed layer in it; relax it first"),
    "survivors, data": (lambda: survivors(model(), data=data()), ArgumentError,
                        "data without an evidence; pass the evidence"),
    "survivors, other model": (lambda: survivors(model(), evidence()), ArgumentError,
                               "an evidence of another model; pass the one"),
    "survivors, history": (lambda: survivors(model(), History(evidence())), ArgumentError,
                           "an Evidence, got History; pass its .evidence"),
    "report, number": (lambda: report(model(), 3), ArgumentError, "report: expected an Evidence, got int; make one by"),
    "harden, history": (lambda: harden(model(), evidence=History(evidence())), ArgumentError,
                        "harden: expected.*; pass its .evidence"),
    "subgroup, form": (lambda: subgroup(DIHEDRAL, 2), SubgroupError, "got 2 of type int; names are trivial, C2"),
    "subgroup, name": (lambda: subgroup(DIHEDRAL, "D2_0"), SubgroupError, "did you mean 'D2_0deg'"),
    "subgroup, other group": (lambda: subgroup(SPACE, subgroup(DIHEDRAL, "C4")), SubgroupError,
                              "a subgroup of C4.*; make it by"),
    "subgroups, order": (lambda: subgroups(SPACE, 0), ArgumentError, "max_order of 1 or more, got 0; leave it out"),
    "cosets": (lambda: subgroup(gspaces.rot2dOnR2(-1, maximum_frequency=2), 2).coset_representatives(), SubgroupError,
               "infinitely.*;"),
    "equivariance, broken": (lambda: assert_equivariant(broken()), NotEquivariantError,
                             r"not equivariant: relative error.*; print\(report"),
    "equivariance, tolerance": (lambda: assert_equivariant(broken(), -1), ArgumentError,
                                "a tolerance of 0 or more, got -1; 1e-4"),
    "equivariance, type": (lambda: equivariance_error(nn.Linear(2, 2)), FieldTypeError,
                           "type of the input is not known; pass"),
    "equivariance, elements": (lambda: equivariance_error(broken(), elements=[]), ArgumentError,
                               "at least one element, got none; leave"),
    "equivariance, group": (lambda: equivariance_error(broken(), elements=[group.cyclic_group(8).identity]),
                            ArgumentError, "elements of C4, got one of C8; take them"),
    "optimiser": (lambda: carry_optimizer(torch.optim.SGD(strange(), 0.1), strict(), relax(strict())), ArgumentError,
                  "holds a parameter that the old model has not; pass the model"),
    "translations, kind": (lambda: relax_translation(relax(strict()), FIELDS(torch.randn(1, 4, 5, 5)), ["thick"]),
                           ArgumentError, "pathways out of.*got 'thick'; pass"),
    "sparse, padding": (lambda: SparseR2Conv(FIELDS, FIELDS, 3, padding_mode="mirror"), ArgumentError,
                        "padding_mode out of.*; leave"),
    "symmetry test, level": (lambda: symmetry_test(Net(), data(), level=2), ArgumentError,
                             "level: expected.*got 2; 0.05"),
    "symmetry test, few": (lambda: symmetry_test(Net(), data(6), progress=False), DataError,
                           "too few.*; pass more data"),
    "symmetry test, constant": (lambda: symmetry_test(Net(), constant(), progress=False), DataError,
                                "all the same; nothing can be learned"),
    "checkpoint": (lambda: checkpoint(), CheckpointError, ";"),
}  # fmt: skip


def posterior():
    known = evidence()
    known.refresh(data())
    return known.posterior()


def checkpoint():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        path.write_bytes(b"no checkpoint")
        quick(checkpoint=path)


@pytest.mark.parametrize("what", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_provoked(what):
    torch.manual_seed(0)
    provoke, kind, message = TABLE[what]
    with pytest.raises(RelaxError) as caught:
        provoke()
    text = str(caught.value)
    assert isinstance(caught.value, kind) and re.search(message, text, re.S), f"{type(caught.value).__name__}: {text}"
    assert caught.value.where or what.startswith("subgroup"), "which layer or argument"
    assert caught.value.remedy and text.endswith(caught.value.remedy)
    assert not re.search(r"[^.]\.$", text) and "\n" not in text and "__init__" not in text


def test_every_kind_is_provoked_or_said_why_not():
    provoked = {kind.__name__ for _, kind, _ in TABLE.values()}
    elsewhere = {
        "InstallationError": "tests/house/test_installation.py",
        "EmptyBasisError": "tests/morphism/test_harden_stabiliser.py",
        "CurvatureError": "tests/evidence/test_evidence_errors.py",
        "SearchError": "tests/search/test_search_evolve.py",
    }
    assert provoked | set(elsewhere) | {"ReflectionAxisError"} >= KINDS - {"RelaxError"}
    for kind, path in elsewhere.items():
        assert kind in (Path(__file__).parents[2] / path).read_text(encoding="utf-8"), path
