"""Kernels on disk are told apart by a version raised by hand: it has to change when the kernels do, and only then."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn.nn import FieldType
from fields import SAMPLING, field_type, kernels_of

from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.symmetry.kernels import cache_key, kernel_cache, pathway_kernels

#: For each version of the kernels what :func:`values` gave. A new version adds an entry and leaves the others as they
#: are: ``python -c 'import json, test_kernel_version as t; print(json.dumps(t.values(), indent=1))'`` in this folder.
RECORDED = json.loads((Path(__file__).parents[1] / "kernel_versions.json").read_text())


def layers():
    """One layer of each way in which kernels are built."""
    so2, octahedral = gspaces.rot2dOnR2(-1), gspaces.rot3dOnR3()
    flat = gspaces.no_base_space(field_type("D4").fibergroup)
    features = FieldType(flat, [flat.regular_repr])
    waves = FieldType(so2, [so2.irrep(0), so2.irrep(1)])
    vectors = FieldType(octahedral, [octahedral.irrep(1)])
    planar = lambda name, size, **how: RelaxedR2Conv(field_type(name), field_type(name), size, initialize=False, **how)
    return {
        "C4": planar("C4", 3),
        "C8": planar("C8", 5),
        "D3": planar("D3", 3),
        "D4 pixel": planar("D4", 3, basis="pixel"),
        "D4 subgroups": planar("D4", 3, subgroups=[(None, 4), (0, 2), (None, 1)]),
        "C4 quotient": RelaxedR2Conv(field_type("C4", "quotient"), field_type("C4", "irreps"), 3, initialize=False),
        "SO(2)": RelaxedR2Conv(waves, waves, 5, initialize=False),
        "SO(3)": RelaxedR3Conv(vectors, vectors, 3, frequencies=1, initialize=False),
        "Linear": RelaxedLinear(features, features, initialize=False),
    }


def values(of=None):
    """For each pathway its dimension, energy, and how much of a fixed vector it takes in; blind to signs and
    rotations."""
    found = {}
    for name, layer in (layers() if of is None else of).items():
        for pathway, kernels in kernels_of(layer).items():
            rows = kernels.detach().double().flatten(1)
            vector = torch.from_numpy(np.random.RandomState(0).standard_normal(rows.shape[1]))
            inside = torch.linalg.lstsq(rows.T, vector[:, None], driver="gelsd").solution[:, 0] @ rows
            found[f"{name}: {pathway}"] = [len(rows), float(rows.square().sum()), float(inside.square().sum())]
    return found


def differing(found, recorded):
    """Names of the pathways with other kernels."""
    same = lambda a, b: np.allclose(a, b, rtol=SAMPLING, atol=SAMPLING)
    return [
        n for n in sorted({*found, *recorded}) if n not in found or n not in recorded or not same(found[n], recorded[n])
    ]


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """No kernels built before."""
    monkeypatch.setenv("ESCNN_RELAX_CACHE", "off")
    monkeypatch.setattr(kernel_cache, "_MEMORY", type(kernel_cache._MEMORY)())


def test_kernels_are_those_of_the_version():
    recorded = RECORDED[str(cache_key.KERNEL_VERSION)]
    assert len(recorded) > 20
    assert differing(values(), recorded) == [], "raise KERNEL_VERSION in cache_key.py and record the new kernels here"


def test_other_kernels_would_be_noticed(monkeypatch):
    """The broken twin: residual kernels that are not orthogonal to the equivariant ones."""

    def unsplit(self, band, in_repr, out_repr, equivariant):
        return {p.name: self._kernels(p, band, in_repr, out_repr) for p in self.residual}

    monkeypatch.setattr(pathway_kernels.Relaxation, "_split", unsplit)
    layer = {"C8": layers()["C8"]}
    assert differing(
        values(layer), {n: v for n, v in RECORDED[str(cache_key.KERNEL_VERSION)].items() if n.startswith("C8")}
    )


def test_versions_are_told_apart(monkeypatch):
    keys = set()
    layer = layers()["C4"]
    i, o = layer.in_type.representations[0], layer.out_type.representations[0]
    for version in (1, 2, 1):
        cache_key._fingerprint.cache_clear()
        monkeypatch.setattr(cache_key, "KERNEL_VERSION", version)
        keys.add(cache_key.cache_key(layer.relaxation, layer.band, i, o, torch.zeros(1, o.size, i.size, 9).double()))
    cache_key._fingerprint.cache_clear()
    assert len(keys) == 2


def test_versions_differ():
    """A version that was raised without need threw every user's kernels away."""
    versions = sorted(RECORDED, key=int)
    assert versions[-1] == str(cache_key.KERNEL_VERSION)
    raised = list(zip(versions, versions[1:]))  # none so far while there is one version
    assert len(raised) == len(versions) - 1
    assert [one for one, two in raised if not differing(RECORDED[one], RECORDED[two])] == []
