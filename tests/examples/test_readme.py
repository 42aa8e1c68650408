"""README's first walk: the script runs as it stands there, and prints what stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<!\w)[-+]?\d+(\.\d+)?(e[-+]?\d+)?%?")


def walk():
    """The script and the output of the section."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## A first walk")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.S).group(1), re.search(
        r"```text\n(.*?)```", section, re.S
    ).group(1)


def words(text):
    """Without numbers (but C2 and irrep_2 stay) and spaces, which differ a little from machine to machine."""
    return [re.sub(r"[\s–-]+", " ", NUMBER.sub("#", line)).strip() for line in text.strip().splitlines()]


def percentages(text):
    return [float(line[:-1]) for line in text.splitlines() if re.fullmatch(r"[\d.]+%", line)]


@pytest.fixture(scope="module")
def printed():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", walk()[0]], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_is_short():
    assert len([line for line in walk()[0].splitlines() if line]) <= 26


def test_it_prints_what_readme_says(printed):
    shown = walk()[1]
    assert words(printed) == words(shown)
    assert percentages(printed) == pytest.approx(percentages(shown), abs=3) and len(percentages(shown)) == 2


def test_another_output_would_be_seen(printed):
    assert words(printed.replace("C2", "C4")) != words(walk()[1]) and words(
        printed.replace("irrep_2", "irrep")
    ) != words(walk()[1])
