"""Groups of the plane, field types and kernel sizes that go together, and exact actions of a group on pixels."""

from functools import cache

import numpy as np
import torch
from escnn import gspaces
from escnn.nn import FieldType, R2Conv
from hypothesis import strategies as st
from nonempty import each
from tolerances import accumulated

#: escnn samples its kernels in float32, which bounds every statement about them that is exact in theory.
SAMPLING = 2e-5
#: Float64 throughout, a few hundred operations.
ROUNDING = 1e-10
#: Float32 throughout, relative to the largest value: sums of up to 128 products in a row.
SINGLE = accumulated(torch.float32, 128)

#: Finite groups of the plane, and those of them that map the pixel grid to itself.
SMALL = ("C2", "C3", "C4", "C6", "C8", "D1", "D2", "D4")
ON_GRID = ("C2", "C4", "D1", "D2", "D4")
SIZES = (1, 3, 5)


@cache
def space(name):
    """The G-space of a group by its name, e.g. ``"C8"`` or ``"D4"``; ``"D1"`` is a single reflection."""
    family, order = name[0], int(name[1:])
    if name == "C1":
        return gspaces.trivialOnR2()
    if family == "C":
        return gspaces.rot2dOnR2(order)
    return gspaces.flip2dOnR2() if order == 1 else gspaces.flipRot2dOnR2(order)


def kinds(name):
    """The kinds of field type that a group has: quotients need a subgroup strictly between."""
    quotient = name in ("C4", "C6", "C8", "D2", "D3", "D4", "D8")
    return ("trivial", "regular", "irreps", "interleaved") + (("quotient",) if quotient else ())


@cache
def field_type(name, kind="regular", copies=1):
    """A field type of one of the :func:`kinds`; ``interleaved`` has equal fields in several places."""
    s = space(name)
    if kind == "quotient":
        fields = [s.quotient_repr(2 if name[0] == "C" else (0, 1))]
    else:
        last = s.irreps[-1]
        fields = {
            "trivial": [s.trivial_repr],
            "regular": [s.regular_repr],
            "irreps": list(s.irreps),
            "interleaved": [last, s.regular_repr, s.trivial_repr, last],
        }[kind]
    return FieldType(s, fields * copies)


def legal(kind_in, kind_out, size):
    """Whether a layer between these kinds has kernels that break the symmetry: one pixel between scalars has not.

    Each kind holds the trivial irrep, so there are always equivariant kernels.
    """
    return size > 1 or (kind_in, kind_out) != ("trivial", "trivial")


@st.composite
def layers(draw, names=SMALL, sizes=SIZES, most=400):
    """``(in_type, out_type, kernel size)`` of a layer that can be built and relaxed.

    ``most`` bounds the number of entries of the whole kernel; inputs come doubled where they still fit.
    """
    name = draw(st.sampled_from(names))
    choices = []
    for kind_in in kinds(name):
        for kind_out in kinds(name):
            for size in sizes:
                for copies in (1, 2):
                    entries = copies * field_type(name, kind_in).size * field_type(name, kind_out).size * size**2
                    if entries <= most and legal(kind_in, kind_out, size):
                        choices.append((kind_in, copies, kind_out, size))
    kind_in, copies, kind_out, size = draw(st.sampled_from(choices))
    return field_type(name, kind_in, copies), field_type(name, kind_out), size


@st.composite
def geometries(draw, size):
    """Arguments of a convolution with kernels of this size that fit images of 9 x 9 pixels."""
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    padding = draw(st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    return {
        "padding": padding,
        "padding_mode": mode,
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
    }


def randomise(layer, *pathways, scale=1.0):
    """Normal coefficients in the named pathways (all of them by default) and in the bias; returns the layer."""
    with torch.no_grad():
        for name, weight in layer.weights.items():
            if not pathways or name in pathways:
                weight.normal_(std=scale)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def image(in_type, pixels=9, batch=2, dtype=torch.float32):
    """A random geometric tensor."""
    return in_type(torch.randn(batch, in_type.size, pixels, pixels, dtype=dtype))


def gap(module, x, element):
    """Relative equivariance error of a module under one element, exact where it maps the pixels to each other."""
    with torch.no_grad():
        plain, turned = module(x), module(x.transform(element)).tensor
    expected = plain.transform(element).tensor
    return float((turned - expected).norm() / expected.norm())


def distance(a, b):
    """Largest difference, relative to the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def kernels_of(layer):
    """Each pathway's kernels, one a row, ``(dimension, out size * in size * pixels)``, by the layer's own expansion."""
    rows = {}
    for name, weight in layer.weights.items():
        unit = torch.eye(len(weight), dtype=weight.dtype)
        rows[name] = torch.func.vmap(lambda e: layer.kernel({name: e}))(unit).flatten(1).double()
    return rows


def kernels_of_strict(convolution):
    """The kernels of an escnn convolution, one a row, through its own expansion."""
    weights = convolution.weights
    unit = torch.eye(len(weights), dtype=weights.dtype)
    return torch.stack([convolution.basisexpansion(e).detach().flatten() for e in unit]).double()


def rank(rows):
    """Dimension of the span."""
    if not len(rows):
        return 0
    values = torch.linalg.eigvalsh(rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows)
    return int((values > 1e-6 * values.max()).sum())


def outside(rows, span):
    """Largest share of a row's norm that lies outside the span of other rows."""
    values, vectors = torch.linalg.eigh(span @ span.T)
    keep = values > 1e-6 * values.max()
    basis = torch.linalg.qr(span.T @ (vectors[:, keep] / values[keep].sqrt())).Q.T
    return float(((rows - rows @ basis.T @ basis).norm(dim=1) / rows.norm(dim=1)).max())


def kernels_of_subgroup(gspace, in_fields, out_fields, like):
    """The kernels of escnn's own layer on another G-space, one a row, on the rings and in the band of ``like``."""
    band = {"rings": list(like.band.rings), "sigma": list(like.band.sigma), "frequencies_cutoff": like.band.cutoff}
    types = FieldType(gspace, in_fields), FieldType(gspace, out_fields)
    return kernels_of_strict(R2Conv(*types, like.kernel_size, **band, bias=False, initialize=False))


def kernels_without_symmetry(in_size, out_size, like):
    """The same for the trivial group and so many channels, each pair of which has the kernels between two scalars."""
    scalar = [space("C1").trivial_repr]
    return torch.kron(torch.eye(in_size * out_size), kernels_of_subgroup(space("C1"), scalar, scalar, like)).double()


def turn(picture, gspace, element):
    """An array ``(..., pixels, pixels)`` moved by an element of a group in :data:`ON_GRID`, by turning the array."""
    if gspace.rotations_order == 1:  # the reflection is an element of C2
        flips, turns = element.value, 0
    elif gspace.flips_order:
        flips, turns = element.value
    else:
        flips, turns = 0, element.value
    if flips:
        picture = picture[..., ::-1]
    return np.rot90(picture, 4 // gspace.rotations_order * turns, (-2, -1)) if turns else picture


def average(rows, in_type, out_type, character=None):
    """Kernels projected on one isotypic part, by turning them as pictures; independent of the package."""
    gspace, group = in_type.gspace, in_type.gspace.fibergroup
    side = round((rows.shape[1] / in_type.size / out_type.size) ** 0.5)
    kernels = rows.numpy().reshape(-1, out_type.size, in_type.size, side, side)
    total = np.zeros_like(kernels)
    for g in group.elements:
        moved = turn(kernels, gspace, g)
        moved = np.einsum("po,koixy,qi->kpqxy", out_type.representation(g), moved, in_type.representation(g))
        total += moved * (1.0 if character is None else character(g))
    return torch.from_numpy(total.reshape(len(rows), -1)) / group.order()


def same_spans(apart, at_once):
    """Kernels split in two ways span the same, pathway by pathway; the orthonormal residual ones of the first."""
    assert list(apart) == list(at_once) and len(apart) > 1
    for pathway, rows in each(apart.items()):
        assert rows.shape == at_once[pathway].shape
        if len(rows):
            assert outside(rows, at_once[pathway]) < SAMPLING, pathway
    residual = torch.cat([rows for pathway, rows in apart.items() if pathway != "equivariant"])
    assert (residual @ residual.T - torch.eye(len(residual))).abs().max() < ROUNDING
    return residual
