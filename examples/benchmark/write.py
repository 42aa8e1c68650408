"""Make tables, figure and the page's numbers of the stored runs, and print which claims hold.

    python examples/benchmark/write.py [--runs FILE] [--check]

``--check`` writes nothing and fails where table or page are not those of the runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from benchmark import tables  # noqa: E402
from benchmark.claims import claims  # noqa: E402
from benchmark.drawing import draw  # noqa: E402
from benchmark.questions import QUESTIONS  # noqa: E402
from benchmark.regret import gathered  # noqa: E402
from runs import stored  # noqa: E402

HERE = Path(__file__).parent
RUNS, TABLE = HERE / "runs.jsonl", HERE / "table.md"
PAGE, FIGURE = HERE.parent / "site" / "benchmark.md", HERE.parent / "figures" / "benchmark.png"
HEAD = """# All errors

Made by `write.py` of `runs.jsonl`. Error of the test data: share of wrong labels, or the root of the squared error over
that of the target; mean ± standard deviation over seeds. Columns: number of training samples, degree of breaking.
"""


def full_table(lines: list[dict]) -> str:
    """One table a question, and what failed."""
    cells = gathered(lines)
    asked = [name for name in QUESTIONS if any(place.question == name for place in cells)]
    parts = [HEAD, *(f"## {QUESTIONS[name].title}\n\n{tables.of_question(cells, name)}" for name in asked)]
    return "\n".join([*parts, f"## Runs that failed\n\n{tables.failures(lines)}"])


def page_parts(lines: list[dict]) -> dict[str, str]:
    """What stands between the marks of the page, by their names."""
    cells = gathered(lines)
    parts = {"questions": tables.asked(cells), "summary": tables.summary(cells), "claims": tables.said(cells)}
    parts["by question"] = tables.regret_by_question(cells)
    return parts


def page(before: str, lines: list[dict]) -> str:
    """The page with what stands between its marks made anew."""
    for name, text in page_parts(lines).items():
        begin, end = f"<!-- {name}: made by write.py -->\n", f"<!-- end of {name} -->"
        if begin not in before or end not in before:
            raise ValueError(f"the page lacks the marks of {name}: {begin.strip()} and {end}")
        before = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{text}\n{end}", before, flags=re.S
        )
    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    lines = stored(given.runs)
    before = PAGE.read_text(encoding="utf-8")
    table, site = full_table(lines), page(before, lines)
    if given.check:
        sys.exit(0 if TABLE.read_text(encoding="utf-8") == table and before == site else "table or page are old")
    TABLE.write_text(table, encoding="utf-8")
    PAGE.write_text(site, encoding="utf-8")
    draw(gathered(lines), FIGURE)
    for claim in claims(gathered(lines)):
        print(f"{'holds' if claim.holds else 'FAILS'}: {claim.words}: {claim.numbers}")


if __name__ == "__main__":
    main()
