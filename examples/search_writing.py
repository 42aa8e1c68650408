"""Turns the runs of search_table.py into tables: means over seeds, architectures, the evidence against the searches."""

from __future__ import annotations

import statistics

import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from search_setting import DATA, INVARIANT, METHODS, MODES, SIZES

from escnn_relax.symmetry.groups.lattice import subgroup

COLUMNS = ("network", "runs", "test accuracy, %", "weights", "passes in all", "seconds", "−log evidence / N", "groups")


def table(lines: list[dict]) -> str:
    """Mean and standard deviation over seeds, and every architecture found."""
    text = ["# Static networks, searches and the evidence", ""]
    text += ["Made by `examples/search_table.py`, which says what is compared. Mean and standard deviation over seeds."]
    for size in [name for name in SIZES if any(line["size"] == name for line in lines)]:
        text += ["", setting(size)]
        for data in DATA:
            for mode in MODES:
                chosen = [one for one in lines if (one["data"], one["mode"], one["size"]) == (data, mode, size)]
                if not chosen:
                    continue
                warning = " (only shows that it runs)" if size == "quick" else ""
                text += ["", f"## {data}, equal {mode}, size {size}{warning}", ""]
                text += [f"| {' | '.join(COLUMNS)} |", "|" + len(COLUMNS) * "---|"]
                for method, title in METHODS.items():
                    of = [line for line in chosen if line["method"] == method]
                    if of:
                        text.append(row(title, of))
                text += verdict(chosen)
    return "\n".join(text) + "\n"


def setting(size: str) -> str:
    """What a size is, in a sentence."""
    s = SIZES[size]
    layers = ", ".join(
        f"{k} × {k}" + f" stride {st}" * (st > 1) + f" pooled by {p}" * (p > 1) for k, st, p in s["layers"]
    )
    groups = ", ".join(["D4", *(subgroup(gspaces.flipRot2dOnR2(4), id).name for id in s["groups"])])
    return (
        f"Size {size}: {len(s['layers'])} convolutions ({layers}) with {s['fields']} regular fields of D4 between them"
        f" and {INVARIANT} invariant ones behind; {s['train']} digits to train on, {s['select']} to select by,"
        f" {s['test']} to test with; {s['epochs']} passes for each final network, {s['search']} of them the search's;"
        f" {s['generations']} generations, {s['population']} survivors; groups {groups}."
    )


def verdict(chosen: list[dict]) -> list[str]:
    """The evidence against the best search that does without, seed by seed."""
    by_method = {m: {line["seed"]: 100 * line["test"] for line in chosen if line["method"] == m} for m in METHODS}
    rivals = [m for m in ("evolve", "pareto", "differentiate", "discretised") if by_method[m]]
    if not rivals:
        return []
    best = max(rivals, key=lambda m: statistics.mean(by_method[m].values()))
    sentences = []
    for method in ("evolve-evidence", "relaxed"):
        gaps = [value - by_method[best][seed] for seed, value in by_method[method].items() if seed in by_method[best]]
        if len(gaps) > 1:
            number = f"{statistics.mean(gaps):+.1f} ± {statistics.stdev(gaps):.1f}"
            sentences.append(f"{METHODS[method]} against {METHODS[best]}, the best search without it: {number} points.")
    return ["", "Seed by seed: " + " ".join(sentences)] if sentences else []


def row(title: str, of: list[dict]) -> str:
    mean = lambda name: statistics.mean(line[name] for line in of)
    values = [100 * line["test"] for line in of]
    spread = f" ± {statistics.stdev(values):.2f}" if len(of) > 1 else ""
    evidence = [-line["evidence"] for line in of if line["evidence"] is not None]
    shown = f"{statistics.mean(evidence):.3f}" if evidence else ""
    groups = "; ".join(dict.fromkeys(" ".join(line["genome"]) for line in of if line["genome"]))
    counts = f"{mean('parameters'):.0f} | {mean('passes'):.1f} | {mean('seconds'):.0f}"
    return f"| {title} | {len(of)} | {statistics.mean(values):.2f}{spread} | {counts} | {shown} | {groups} |"
