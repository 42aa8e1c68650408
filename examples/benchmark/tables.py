"""Tables of the stored runs, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.claims import claims, relative_cost
from benchmark.methods import listed
from benchmark.questions import QUESTIONS
from benchmark.regret import Cells, Place, regrets


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shared_name(method: str, question: str) -> str:
    """The name of a method across questions, whose groups differ: the whole group is G, one in between H."""
    parts = method.rsplit(" ", 1)
    statics = list(QUESTIONS[question].statics)
    if not method.startswith("strict") or parts[-1] not in statics:
        return method
    role = {statics[0]: "G", statics[-1]: "C1"}.get(parts[-1], "H")
    return f"{parts[0]} {role}"


def order() -> list[str]:
    """Names of all methods across questions, in the order of tables."""
    names = [shared_name(method, name) for name, question in QUESTIONS.items() for method in listed(question)]
    return list(dict.fromkeys(names))


def by_method(cells: Cells) -> dict[str, dict[Place, list]]:
    """Regrets with the costs beside them, by the names across questions; where two subgroups lie in between, the better
    one of each cell."""
    result: dict[str, dict[Place, list]] = {}
    for method, places in regrets(cells).items():
        for place, one in places.items():
            of = result.setdefault(shared_name(method, place.question), {})
            if place not in of or one.value < of[place][0].value:
                of[place] = [one, method]
    return result


def summary(cells: Cells) -> str:
    """One row a method, over all cells."""
    found = by_method(cells)
    body = []
    for name in order():
        if name not in found:
            continue
        values = np.array([100 * one.value for one, _ in found[name].values()])
        runs = [[cells[place][method][seed] for seed in one.seeds] for place, (one, method) in found[name].items()]
        lines = [line for of in runs for line in of]
        costs = [relative_cost(cells[place], method) for place, (_, method) in found[name].items()]
        looks = np.median([line["images"] / (line["count"] * line["passes"]) for line in lines])
        ece = [line["ece"] for line in lines if "ece" in line]
        body.append(
            [
                name,
                str(len(lines)),
                f"{values.mean():.0f}",
                f"{np.median(values):.0f}",
                f"{values.max():.0f}",
                f"{int((values < 0).sum())} of {len(values)}",
                f"{np.mean([line['error_turned'] for line in lines]):.2f}",
                f"{np.mean([line['equivariance_error'] for line in lines]):.2f}",
                f"{np.mean(ece):.2f}" if ece else "",
                f"{np.median(costs):.1f}",
                f"{looks:.1f}",
                f"{np.median([line['weights'] for line in lines]):.0f}",
                str(max(line["evaluations"] for line in lines)),
            ]
        )
    head = ["method", "runs", "regret %, mean", "median", "worst", "better than all static", "error turned"]
    head += ["equiv. error", "ECE", "seconds / strict G", "images / N passes", "weights", "evaluations"]
    return rows(head, body)


def regret_by_question(cells: Cells) -> str:
    """Mean regret (%) of each method in each question, and the worst cell's."""
    found = by_method(cells)
    asked = [name for name in QUESTIONS if any(place.question == name for place in cells)]
    body = []
    for name in (name for name in order() if name in found):
        texts = []
        for question in asked:
            values = [100 * one.value for place, (one, _) in found[name].items() if place.question == question]
            texts.append(f"{np.mean(values):.0f} ({max(values):.0f})" if values else "")
        body.append([name, *texts])
    return rows(["method", *asked], body)


def of_question(cells: Cells, name: str) -> str:
    """Error and its spread over seeds of all methods, degrees beside each other."""
    places = sorted(place for place in cells if place.question == name)
    body = []
    for method in listed(QUESTIONS[name]):
        texts = []
        for place in places:
            of = [line["error"] for line in cells[place].get(method, {}).values()]
            spread = f" ± {np.std(of, ddof=1):.3f}" if len(of) > 1 else ""
            texts.append(f"{np.mean(of):.3f}{spread}" if of else "")
        body.append([method, *texts])
    return rows(["method", *(f"N {place.count}, {place.degree:g}" for place in places)], body)


def said(cells: Cells) -> str:
    """The claims with their verdicts."""
    return rows(
        ["claim", "holds", "measured"], [[c.words, "yes" if c.holds else "**no**", c.numbers] for c in claims(cells)]
    )


def failures(lines: Sequence[dict]) -> str:
    """Runs that failed, with their reasons."""
    body = [
        [f"{f['question']}, N = {f['count']}, degree {f['degree']:g}, seed {f['seed']}", f["method"], f["failed"]]
        for f in lines
        if "failed" in f
    ]
    return rows(["cell", "method", "reason"], body) if body else "No run failed.\n"


def asked(cells: Cells) -> str:
    """The questions that have runs."""
    body = [
        [q.title, q.spoken, q.group, ", ".join(list(q.statics)[1:]), " → ".join([q.truth(0.0), q.truth(0.5)])]
        + [
            "fields" if q.classes is None else f"{q.classes} labels",
            "; ".join(f"{n}: {p}" for n, p in q.passes.items()),
        ]
        for name, q in QUESTIONS.items()
        if any(place.question == name for place in cells)
    ]
    return rows(["question", "broken by", "G", "subgroups", "true group", "targets", "N: passes"], body)
