"""A subgroup by its id, its printed name or as a Subgroup, wherever one is taken."""

import pytest
import torch
from escnn import gspaces, group
from escnn import nn as enn
from nonempty import each

import escnn_relax
from escnn_relax import Subgroup, harden, mix, relax, report, restrict, subgroup, subgroups, survivors
from escnn_relax.errors import SubgroupError, naming, nearest
from escnn_relax.nn import MixedR2Conv, RelaxedLinear, RelaxedR2Conv, SparseR2Conv

SPACES = {
    "C8": lambda: gspaces.rot2dOnR2(8),
    "D4": lambda: gspaces.flipRot2dOnR2(4),
    "D6": lambda: gspaces.flipRot2dOnR2(6),
    "O2": lambda: gspaces.flipRot2dOnR2(-1),
    "SO3": lambda: gspaces.rot3dOnR3(),
    "octahedral": lambda: gspaces.octaOnR3(),
    "abstract": lambda: gspaces.no_base_space(group.dihedral_group(4)),
}


def test_public():
    assert {"Subgroup", "subgroup", "RelaxError"} <= set(escnn_relax.__all__)
    with pytest.raises(escnn_relax.RelaxError):
        subgroup(gspaces.rot2dOnR2(8), "C3")


@pytest.mark.parametrize("name", SPACES)
def test_every_listed_name_is_understood(name):
    space = SPACES[name]()
    members = list(subgroups(space))
    assert len(members) > 3
    for member in each(members):
        found = subgroup(space, member.name)
        assert found.name == member.name and found <= member and member <= found
        assert subgroup(space, member) is member


@pytest.mark.parametrize("name", ["C16", "D12_0deg", "D1_33p25deg", "D5_7deg", "D3_20deg"])
def test_names_of_continuous_groups_beyond_the_list(name):
    space = gspaces.flipRot2dOnR2(-1)
    found = subgroup(space, name)
    assert found.name == name and name not in [m.name for m in subgroups(space)]
    turns = int(name[1:].split("_")[0])
    assert found.order == turns * (2 if name[0] == "D" else 1)


def test_turns_in_space_beyond_the_list():
    assert subgroup(gspaces.rot3dOnR3(), "C11").order == 11
    assert subgroup(gspaces.rot3dOnR3(), "D11").order == 22


@pytest.mark.parametrize(
    ("space", "wrong", "right"),
    [("C8", "c4", "C4"), ("D4", "D2_0", "D2_0deg"), ("O2", "D1_90", "D1_90deg"), ("octahedral", "octahedral", "Octa")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(space, wrong, right):
    with pytest.raises(SubgroupError, match=f"conv: .*no subgroup '{wrong}'.*; did you mean '{right}'"), naming("conv"):
        subgroup(SPACES[space](), wrong)


def test_a_subgroup_of_another_group():
    other = subgroup(gspaces.rot2dOnR2(4), 2)
    with pytest.raises(SubgroupError, match="expected a subgroup of C8, got C2, one of C4; make it by"):
        subgroup(gspaces.rot2dOnR2(8), other)
    flat = gspaces.no_base_space(gspaces.rot2dOnR2(4).fibergroup)
    assert subgroup(flat, other).gspace is flat  # the same group on another base space


def strict(space):
    gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    return enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, fields, 3))


KINDS = {"id": lambda h: h.id, "name": lambda h: h.name, "Subgroup": lambda h: h}


@pytest.mark.parametrize("kind", KINDS)
def test_taken_everywhere(kind):
    space = gspaces.flipRot2dOnR2(4)
    chosen: Subgroup = subgroup(space, (0, 2))
    given = KINDS[kind](chosen)
    net = strict(space)
    on_h = restrict(net, given)
    assert on_h[0].in_type.gspace.fibergroup.order() == 4
    relaxed = relax(net, subgroups=[given])
    assert [p.name for p in relaxed[0].pathways] == ["equivariant", "D2_0deg"]
    assert mix(net, [given, "trivial"])[0].group_names == {
        "equivariant": "D4",
        "D2_0deg": "D2_0deg",
        "trivial": "trivial",
    }
    fields = net[2].in_type
    assert [p.name for p in RelaxedR2Conv(fields, fields, 3, subgroups=[given]).pathways][1:] == ["D2_0deg"]
    assert list(MixedR2Conv(fields, fields, 3, subgroups=[given]).group_names.values()) == ["D4", "D2_0deg"]
    assert repr(SparseR2Conv(fields, fields, 3, padding=1, subgroup=given)) == repr(
        SparseR2Conv(fields, fields, 3, padding=1, subgroup=chosen.id)
    )
    hardened = harden(relax(net), to={"0": given, "2": given})
    assert hardened[0].in_type.gspace.fibergroup.order() == 4
    flat = gspaces.no_base_space(space.fibergroup)
    features = enn.FieldType(flat, [flat.regular_repr])
    assert [p.name for p in RelaxedLinear(features, features, subgroups=[given]).pathways][1:] == ["D2_0deg"]


def test_what_reports_print_is_taken_back():
    net = relax(strict(gspaces.flipRot2dOnR2(4)))
    with torch.no_grad():
        net[2].weights["irrep_0,2"].normal_()
    read = report(net)
    names = {layer.name: layer.survivor for layer in read.layers}
    assert names == {"0": "D4", "2": "D2_0deg"}
    by_name, by_record = harden(net, to=names), harden(net, to=survivors(net).subgroups)
    x = torch.randn(1, 1, 9, 9)
    assert torch.equal(by_name(by_name.in_type(x)).tensor, by_record(by_record.in_type(x)).tensor)


def test_nearest():
    assert nearest("noize", ["noise", "samples"]).startswith("did you mean 'noise'?")
    assert nearest("x", []) == "there are none"
    assert nearest("a1", ["a2"]) == "did you mean 'a2'? There is a2"
