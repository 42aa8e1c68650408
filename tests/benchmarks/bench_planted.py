"""Every subgroup planted, in kernels and in data, and the name that is read off: a confusion matrix, beside the rule of
before.

    python tests/benchmarks/bench_planted.py [--only WORD ...] [--minutes M] [--page]

Each run is one line of ``planted.jsonl`` (a run that is there is not done again); the page is ``planted.md``.
``--only`` takes the runs in whose title every word occurs, ``--page`` writes the page alone. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from functools import lru_cache, cache
from pathlib import Path
from typing import Any, NamedTuple
from collections.abc import Callable, Iterator

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "symmetry"), str(TESTS / "diagnosis")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
import test_axes_in_space as axes  # noqa: E402
import test_planted_in_space as voxels  # noqa: E402
import test_planted_subgroups as pixels  # noqa: E402
from escnn import nn as enn  # noqa: E402
import planted_data  # noqa: E402
from planted_data import Learned, filtered, labelled, plane_type  # noqa: E402
from whole_irreps import by_whole_irreps  # noqa: E402

from escnn_relax import survivors  # noqa: E402
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry  # noqa: E402
from escnn_relax.nn.measured.stabiliser import stabiliser  # noqa: E402
from escnn_relax.symmetry.groups.conjugation import conjugate  # noqa: E402
from escnn_relax.symmetry.kernels.positions import Positions  # noqa: E402
from escnn_relax.symmetry.groups.lattice import Subgroup, subgroup, subgroups  # noqa: E402

RUNS, PAGE = (Path(__file__).with_name(f"planted.{kind}") for kind in ("jsonl", "md"))
HIT, UNSURE, WRONG = "hit", "cannot tell", "wrong"
PLANE = ("C4", "C6", "C8", "C12", "D3", "D4", "D6", "D8")
SEEDS = (0, 1, 2)
#: Of a regression samples, noise (standard deviation, of fields of about 2) and batch: 200 steps, or a fourth of them.
LEVELS = {"clear": (80, 0.3, 20), "faint": (20, 1.0, 5), "unfinished": (20, 0.3, 20)}
#: Radians between a planted axis and one that was learned.
TURN = 0.1


@cache
def space_of(name: str) -> Any:
    return {"SO(3)": axes.SO3, "O(3)": axes.O3}.get(name) or planted_data.space_of(name)


class Case(NamedTuple):
    """One planted subgroup: how (kernel, regression, classifier), on which fields, size and data; and the run."""

    key: dict[str, Any]
    run: Callable[[], dict[str, Any]]

    @property
    def title(self) -> str:
        return " ".join(str(value) for value in self.key.values())


def case(how: str, group: str, setting: str, planted: str, seed: int, run: Callable[[], dict[str, Any]]) -> Case:
    return Case({"how": how, "group": group, "setting": setting, "planted": planted, "seed": seed}, run)


# kernels


@lru_cache(maxsize=1)
def of_pixels(group: str, kind: str, size: int) -> Any:
    return pixels.Planted(group, kind, size)


def in_pixels(group: str, kind: str, size: int, kept: Subgroup, seed: int) -> dict[str, Any]:
    """Right is a name whose kernels escnn's own layers have, if those of no larger subgroup do."""
    planted = of_pixels(group, kind, size)
    kernel = planted.plant(kept, seed)
    symmetry = KernelSymmetry(planted.layer)

    def verdict(found: Subgroup) -> str:
        larger = [h for h in subgroups(planted.space) if found < h]
        own = planted.outside(kernel, found) < pixels.SAMPLED
        return HIT if own and all(planted.outside(kernel, h) > pixels.OUTSIDE for h in larger) else WRONG

    now, before = stabiliser([symmetry]).subgroup, by_whole_irreps(symmetry)[0]
    return {"now": [verdict(now), now.name], "before": [verdict(before), before.name]}


@lru_cache(maxsize=1)
def of_voxels(kind: str, size: int) -> Any:
    space = space_of("octahedral")
    into, out = {
        "vectors to pseudovectors": (space.irrep(1), space.irrep(-1)),
        "scalars": (space.trivial_repr, space.trivial_repr),
        "regular": (space.trivial_repr, space.regular_repr),
        "mixed": (space.irrep(2), space.irrep(1)),
    }[kind]
    layer = voxels.made(space, into, out, size)
    return layer, voxels.Moves(layer)


def in_voxels(kind: str, size: int, kept: Subgroup, seed: int) -> dict[str, Any]:
    """Right is the set of all elements that leave the kernel as it is when they move it, by numpy."""
    layer, moves = of_voxels(kind, size)
    position = {e: i for i, e in enumerate(moves.elements)}
    kernel = moves.average(voxels.planted(layer, seed), [position[e] for e in kept.elements])
    assert voxels.write(layer, kernel) < voxels.SAME
    truth, symmetry = moves.stabiliser(kernel), KernelSymmetry(layer)
    found = [stabiliser([symmetry]).subgroup, by_whole_irreps(symmetry)[0]]
    names = [[HIT if frozenset(position[e] for e in h.elements) == truth else WRONG, h.name] for h in found]
    return dict(zip(("now", "before"), names))


@lru_cache(maxsize=1)
def turning_layer(group: str, size: int) -> Any:
    return axes.made(space_of(group), size)


def about_axes(group: str, size: int, kind: Subgroup, seed: int) -> dict[str, Any]:
    """Right is the subgroup where it was planted, or a larger one that these frequencies cannot tell from it."""
    layer = turning_layer(group, size)
    kept = conjugate(kind, torch.as_tensor(np.random.default_rng(seed).normal(size=3)))
    axes.plant(layer, kept, seed)
    symmetry = KernelSymmetry(layer)
    positions = Positions(layer.space, symmetry.turning(), symmetry.search().highest)
    found = [stabiliser([symmetry]).subgroup, by_whole_irreps(symmetry)[0]]
    result = {}
    for when, h in zip(("now", "before"), found):
        alike = (
            h.order != kept.order
            and axes._inside(kept, h)
            and positions.contains(positions.place(kept), positions.place(h))
        )
        result[when] = [HIT if axes.same(h, kept) or alike else WRONG, h.name]
    return result


# data


def planar(one: Subgroup, other: Subgroup) -> bool:
    """Whether two subgroups of SO(2) or O(2) are one, their axes up to what data can tell."""
    (a, m), (b, n) = (h.id if isinstance(h.id, tuple) else (None, h.id) for h in (one, other))
    if m != n or (a is None) != (b is None):
        return False
    return a is None or m == -1 or abs(math.remainder(a - b, 2 * math.pi / m)) < 2 * TURN


def solid(one: Subgroup, other: Subgroup) -> bool:
    """The same in SO(3) and O(3)."""
    if one.order != other.order or 1 in (one.index, other.index) or "SO3" in (one.name, other.name):
        return one.order == other.order and one.name == other.name
    a, b = axes.matrices(one), axes.matrices(other)
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3)))
    return bool(max(distance.min(0).max(), distance.min(1).max()) < (0.25 if one.order < 0 else 3 * TURN))


def learned(make: Callable[[], Learned], kept: Subgroup) -> dict[str, Any]:
    """What is read off a trained model by the evidence, with the data as well, and by the rule of before."""
    start = time.process_time()
    found = make()
    truth = stabiliser([KernelSymmetry(found.exact)]).subgroup
    same = {"SO2": planar, "O2": planar, "SO3": solid, "O3": solid}.get(
        type(kept.gspace.fibergroup).__name__, lambda a, b: a == b
    )

    def read(**data: Any) -> list[Any]:
        one = survivors(found.model, found.evidence, progress=False, **data).network
        right = same(one.subgroup, truth)
        if not found.evidence.learned:
            return [UNSURE, "no verdict", [], None]
        if one.candidates:
            verdict = UNSURE if right or any(same(h, truth) for h in one.candidates) else WRONG
        else:
            verdict = HIT if right else WRONG
        margin = round(one.margin, 1) if math.isfinite(one.margin) else None
        return [verdict, one.subgroup.name, [h.name for h in one.candidates], margin]

    before, margin = by_whole_irreps(KernelSymmetry(found.model.layer, "layer"), found.evidence)
    old = [HIT if same(before, truth) else WRONG, before.name, [], round(margin, 1) if math.isfinite(margin) else None]
    result = {"truth": truth.name, "now": read(), "data": read(data=found.loader), "before": old}
    found.evidence.slopes = None
    return result | {"mode": read()} | {"seconds": round(time.process_time() - start, 1)}


#: Frequencies of the fields between which these groups' subgroups differ, on 3 x 3 pixels.
FREQUENCIES = {"C12": (0, 1, 3), "SO(2)": (0, 1, 2), "O(2)": (0, 1, 2)}


def regressions(
    group: str, size: int, kinds: list[Subgroup], levels: tuple[str, ...], seeds: tuple[int, ...]
) -> Iterator[Case]:
    space = space_of(group)
    if space.dimensionality == 2:
        into = out = plane_type(space, FREQUENCIES.get(group, (0, 1)))
    elif group == "octahedral":
        into, out = (enn.FieldType(space, [space.irrep(k)]) for k in (1, -1))
    else:
        into = out = axes.vectors(space)
    for level in levels:
        for seed in seeds:
            for kind in kinds:
                kept = kind
                if group in ("SO(3)", "O(3)"):
                    kept = conjugate(kind, torch.as_tensor(np.random.default_rng(seed).normal(size=3)))
                if group == "O(2)" and kind.id[0] is not None and kind.order > 0:
                    kept = subgroup(
                        space, (float(2 * math.pi / kind.id[1] * np.random.default_rng(seed).uniform()), kind.id[1])
                    )
                options: dict[str, Any] = dict(zip(("samples", "noise", "batch"), LEVELS[level]))

                def make(kept: Subgroup = kept, seed: int = seed, options: dict[str, Any] = options) -> Learned:
                    return filtered(kept, into, out, size, seed, **options)

                yield case(
                    "regression",
                    group,
                    f"{level}, {size}",
                    kind.name,
                    seed,
                    lambda make=make, kept=kept: learned(make, kept),
                )


def classifiers(group: str, size: int, kinds: list[Subgroup], seeds: tuple[int, ...], samples: int) -> Iterator[Case]:
    space = space_of(group)
    into = (
        plane_type(space) if space.dimensionality == 2 else enn.FieldType(space, [space.trivial_repr, space.irrep(1)])
    )
    for seed in seeds:
        for kept in kinds:

            def make(kept: Subgroup = kept, seed: int = seed) -> Learned:
                return labelled(kept, into, size, seed, samples)

            yield case(
                "classifier",
                group,
                f"{samples}, {size}",
                kept.name,
                seed,
                lambda make=make, kept=kept: learned(make, kept),
            )


def cases() -> Iterator[Case]:
    """All of them, in the order in which they are done."""
    every = {name: list(subgroups(space_of(name))) for name in (*PLANE, "octahedral")}
    plane = {
        "SO(2)": [-1, 1, 2, 3, 4, 5],
        "O(2)": [(None, -1), (0.0, -1), (None, 1), (None, 2), (None, 3), (0.0, 1), (0.0, 2), (0.0, 3)],
    }
    turning = {name: list(subgroups(space_of(name), 4)) for name in ("SO(3)", "O(3)")}
    small = ("C8", "C6", "C4", "C12", "D3", "D4")
    for group in small:
        yield from regressions(group, 3, every[group], ("clear",), SEEDS)
    yield from regressions("octahedral", 3, every["octahedral"], ("clear",), (0,))
    for group in ("D6", "D8"):
        yield from regressions(group, 3, every[group], ("clear",), (0,))
    yield from kernels(every)
    yield from turned_kernels(turning, "O(3)", 3, (0,))
    for group in ("C6", "D4"):
        yield from classifiers(group, 5, every[group], (0,), 2000)
    for group in small:
        yield from regressions(group, 3, every[group], ("unfinished", "faint"), (0,))
    yield from regressions("octahedral", 3, every["octahedral"], ("clear",), SEEDS)
    for group, ids in plane.items():
        yield from regressions(group, 3, [subgroup(space_of(group), id) for id in ids], ("clear",), SEEDS)
    for size in (3, 5, 7):
        yield from turned_kernels(turning, "SO(3)", size, (0,))
    yield from regressions("SO(3)", 3, turning["SO(3)"], ("clear",), (0,))
    for group in ("D8", "D6", "octahedral"):
        yield from regressions(group, 3, every[group], ("unfinished", "faint"), (0,))
    for group in ("D6", "D8"):
        yield from regressions(group, 3, every[group], ("clear",), SEEDS)
    for group in ("C6", "C8", "D4"):
        yield from classifiers(group, 5, every[group], SEEDS, 2000)
    yield from classifiers("octahedral", 3, every["octahedral"], (0,), 2000)
    for group in small:
        yield from regressions(group, 3, every[group], ("unfinished", "faint"), SEEDS)
    yield from regressions("SO(3)", 3, turning["SO(3)"], ("clear",), SEEDS)
    yield from regressions("O(3)", 3, turning["O(3)"], ("clear",), (0,))


def kernels(every: dict[str, list[Subgroup]]) -> Iterator[Case]:
    """Those of finite groups, planted in kernels."""
    for size in (3, 5, 7):
        for group in PLANE:
            for kind in ("scalars", "vectors", "regular"):
                for seed, kept in enumerate(every[group]):
                    run = lambda g=group, k=kind, s=size, h=kept, n=seed: in_pixels(g, k, s, h, n)  # noqa: E731
                    yield case("kernel", group, f"{kind}, {size}", kept.name, seed, run)
    for kind, sizes in {
        "vectors to pseudovectors": (3, 5, 7),
        "scalars": (3, 5, 7),
        "regular": (3, 5),
        "mixed": (3, 5),
    }.items():
        for size in sizes:
            for seed, kept in enumerate(every["octahedral"]):
                run = lambda k=kind, s=size, h=kept, n=seed: in_voxels(k, s, h, n)  # noqa: E731
                yield case("kernel", "octahedral", f"{kind}, {size}", kept.name, seed, run)


def turned_kernels(turning: dict[str, list[Subgroup]], group: str, size: int, seeds: tuple[int, ...]) -> Iterator[Case]:
    """Those of SO(3) and O(3), about random axes."""
    for kept in turning[group]:
        for seed in seeds:
            run = lambda h=kept, n=seed: about_axes(group, size, h, n)  # noqa: E731
            yield case("kernel", group, f"vectors, {size}", kept.name, seed, run)


# the page

HEAD = """# Planted subgroups, and what is read off

Made by `bench_planted.py`; every run is a line of `planted.jsonl`. *Kernel*: a random kernel of escnn's own layer of
the subgroup, or one averaged over it by numpy; right is the largest subgroup that leaves it as it is (which a few
kernels share with a larger one). *Regression*: fields on a torus filtered by a kernel of which a tenth of the energy
has the subgroup's symmetry alone; *clear*: 80 samples, noise 0.3, *faint*: 20 samples, noise 1 (the fields have about
2), *unfinished*: 20, noise 0.3, and a fourth of the steps. *Classifier*: labels drawn by such a kernel, by the defaults
of `fit`. One layer each, 50 epochs. *Before*: by whole irreps, at the precisions of all kernels, among escnn's own ids
in escnn's positions, read off the same weights. *Weights taken for the mode*: as now, without the slope that the
training left (`evidence.slopes`). Counts are **hits / cannot tell / wrong**; "cannot tell" names candidates, the
planted one among them, or says that the network is no better than a constant.

"""
WAYS = (("now", "now"), ("data", "now, with `data=`"), ("mode", "weights taken for the mode"), ("before", "before"))


def tally(lines: list[dict], way: str) -> str:
    counts = Counter(line[way][0] for line in lines if way in line)
    return " / ".join(str(counts[k]) for k in (HIT, UNSURE, WRONG)) if counts else ""


def page(lines: list[dict]) -> str:
    groups: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        groups[line["group"]].append(line)
    order = [g for g in (*PLANE, "SO(2)", "O(2)", "octahedral", "SO(3)", "O(3)") if g in groups]
    rows = [HEAD + "| group | planted in | runs | " + " | ".join(dict(WAYS).values()) + " |", "|---" * 7 + "|"]
    for group in order:
        for how in ("kernel", "regression", "classifier"):
            settings: dict[str, list[dict]] = defaultdict(list)
            for line in groups[group]:
                if line["how"] == how:
                    settings[line["setting"].rsplit(", ", 1)[0]].append(line)
            for setting, of in settings.items():
                sizes = " ".join(sorted({line["setting"].rsplit(", ", 1)[1] for line in of}))
                counts = " | ".join(tally(of, way) for way, _ in WAYS)
                rows.append(f"| {group} | {how}: {setting}; size {sizes} | {len(of)} | {counts} |")
    for group in order:
        hows = [h for h in ("kernel", "regression", "classifier") if any(x["how"] == h for x in groups[group])]
        columns = [(h, way) for h in hows for way, _ in WAYS if any(way in x for x in groups[group] if x["how"] == h)]
        rows += [
            "",
            f"## {group}",
            "",
            "| planted | " + " | ".join(f"{h}: {dict(WAYS)[w]}" for h, w in columns) + " | named otherwise |",
        ]
        rows.append("|---" * (len(columns) + 2) + "|")
        for planted in dict.fromkeys(x["planted"] for x in groups[group]):
            of = [x for x in groups[group] if x["planted"] == planted]
            cells = [tally([x for x in of if x["how"] == h], w) for h, w in columns]
            rows.append(f"| {planted} | " + " | ".join(cells) + f" | {otherwise(of)} |")
    return "\n".join(rows) + "\n"


def otherwise(lines: list[dict]) -> str:
    """Wrong names and doubts, with how often each."""
    said: Counter[str] = Counter()
    for line in lines:
        for way, _ in WAYS:
            if line.get(way, [HIT])[0] != HIT:
                verdict, name, *more = line[way]
                among = f" or {', '.join(more[0])}" if more and more[0] else ""
                said[
                    f"{'now' if way in ('now', 'data') else way} {name}{among}{' (wrong)' if verdict == WRONG else ''}"
                ] += 1
    shown = said.most_common(6)
    return "; ".join(f"{text} ×{n}" for text, n in shown) + (f"; {len(said) - 6} more" if len(said) > 6 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    done: set[tuple[Any, ...]] = {
        tuple(line[k] for k in ("how", "group", "setting", "planted", "seed")) for line in lines
    }
    end = time.monotonic() + 60 * given.minutes
    for one in () if given.page else cases():
        if (
            tuple(one.key.values()) in done
            or not all(word in one.title for word in given.only)
            or time.monotonic() > end
        ):
            continue
        line = one.key | one.run()
        done.add(tuple(one.key.values()))
        lines.append(line)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    PAGE.write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
