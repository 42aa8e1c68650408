"""Train the networks of the benchmark and store each run as one line of ``runs.jsonl``.

    python examples/benchmark/run.py [--question smoke ...] [--seeds 5] [--data FOLDER] [--methods fit ...]

A run that is there is not done again, so a sweep can be stopped and continued. Questions that need data which are not
in the repository are left out without ``--data``. What fails is stored with its reason and is not repeated unless
``--again``. One thread; a cell of all methods takes about a minute, ``make benchmark`` redoes one degree of a question.
``write.py`` makes tables and figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import escnn_relax  # noqa: E402, I001  # before escnn, which may need what it brings
from benchmark.cell import Cell  # noqa: E402
from benchmark.measures import error, measured  # noqa: E402
from benchmark.methods import methods  # noqa: E402
from benchmark.question import DEGREES  # noqa: E402
from benchmark.questions import QUESTIONS  # noqa: E402
from runs import stored  # noqa: E402

RUNS = Path(__file__).with_name("runs.jsonl")
KEY = ("question", "count", "degree", "seed", "method")


def run(cell: Cell, method: str) -> dict:
    """One run: the line that is stored."""
    line = {"question": cell.question.name, "count": cell.count, "degree": cell.degree, "seed": cell.seed}
    line |= {"method": method, "passes": cell.passes, "versions": versions()}
    try:
        outcome = methods(cell.question)[method](cell)
        line |= {k: round(v, 6) for k, v in measured(outcome.predict, cell.question, cell.data).items()}
        if outcome.final is not None:
            line["error_hardened"] = round(error(outcome.final(cell.data.test.x), cell.data.test.y), 6)
    except Exception as problem:  # whatever goes wrong is a result too
        return line | {"failed": f"{type(problem).__name__}: {problem}"[:300]}
    line |= {"seconds": round(outcome.seconds, 2), "images": outcome.images, "weights": outcome.weights}
    return line | {"evaluations": outcome.evaluations, "notes": outcome.notes}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch": torch.__version__.split("+")[0], "escnn": version("escnn"), "escnn_relax": escnn_relax.__version__}


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """Seeds outside: a sweep that is stopped has fewer of them everywhere."""
    for seed in range(given.first_seed, given.seeds):
        for name in given.question:
            question = QUESTIONS[name]
            if question.stored and given.data is None:
                print(f"{name} is left out: pass --data with a folder that holds {question.stored}", file=sys.stderr)
                continue
            for count in given.sizes or question.sizes:
                for degree in given.degrees:
                    yield Cell(question, count, degree, seed, given.data, given.passes)


def sweep(given: argparse.Namespace) -> None:
    of = lambda line: tuple(line[name] for name in KEY)
    done = {of(line) for line in stored(given.runs) if not (given.again and "failed" in line)}
    for cell in cells(given):
        for method in methods(cell.question):
            place = (cell.question.name, cell.count, cell.degree, cell.seed, method)
            chosen = given.methods is None or any(method.startswith(part) for part in given.methods)
            if place in done or not chosen or method in given.without:
                continue
            if given.minutes is not None and time.monotonic() > given.start + 60 * given.minutes:
                return
            store(run(cell, method), given.runs)


def store(line: dict, path: Path) -> None:
    cut_off = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut_off else "") + json.dumps(line) + "\n")
    shown = line.get("failed") or f"error {line['error']:.3f}, {line['seconds']:.1f} s"
    place = f"{line['question']} {line['count']} at {line['degree']}, seed {line['seed']}, {line['method']}"
    print(f"{place}: {shown}", flush=True)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, default=2, help="from the first on, so many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of training samples")
    parser.add_argument("--degrees", type=float, nargs="+", default=list(DEGREES))
    parser.add_argument("--passes", type=int, default=0, help="over the training data; the question's own by default")
    parser.add_argument("--methods", nargs="+", help="those whose names begin so")
    parser.add_argument("--without", nargs="+", default=[], help="names of methods")
    parser.add_argument("--data", type=Path, help="folder with data that are not in the repository")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--minutes", type=float, help="start no run after so many")
    parser.add_argument("--again", action="store_true", help="repeat what failed")
    given = parser.parse_args(words)
    given.start = time.monotonic()
    return given


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    sweep(parsed())


if __name__ == "__main__":
    main()
