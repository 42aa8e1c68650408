"""Which versions of Python, torch, numpy and escnn work together: ``make matrix``, or one row of it as below.

    python tests/benchmarks/matrix.py --only 3.12

Each combination gets a virtual environment as ``make venv`` makes it, in a folder of its own, and runs a selection of
the tests that reaches every room; ``--whole`` runs the whole quick suite. One line a combination goes to matrix.jsonl,
and what stands there is not run again, so a run that was stopped goes on; ``--again`` runs it nonetheless. What cannot
be installed gets a line with the reason that pip gave. examples/site/versions.md is the table. Needs nothing but Python
and make.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS, TABLE = HERE / "matrix.jsonl", ROOT / "examples" / "site" / "versions.md"

#: Python, torch, numpy, escnn: the corners, each fork beside the oldest and the newest, and what is known not to go
#: together. Neighbours that differ in escnn alone share an environment.
COMBINATIONS = (
    ("3.11", "2.6.0", "1.26.4", "escnn==1.0.11"),
    ("3.11", "2.13.0", "1.26.4", "escnn==1.0.11"),
    ("3.11", "2.13.0", "1.26.4", "escnn-escience==1.0.14"),
    ("3.11", "2.13.0", "1.26.4", "escnn-atompaint==1.0.13"),
    ("3.11", "2.15.0", "2.4.6", "escnn==1.0.11"),
    ("3.12", "2.6.0", "1.26.4", "escnn==1.0.11"),
    ("3.12", "2.10.0", "2.2.6", "escnn==1.0.11"),
    ("3.12", "2.15.0", "2.5.5", "escnn==1.0.11"),
    ("3.13", "2.6.0", "1.26.4", "escnn==1.0.11"),
    ("3.13", "2.6.0", "2.1.3", "escnn==1.0.11"),
    ("3.13", "2.15.0", "2.5.5", "escnn==1.0.11"),
    ("3.13", "2.15.0", "2.5.5", "escnn-escience==1.0.14"),
    ("3.13", "2.15.0", "2.5.5", "escnn-atompaint==1.0.13"),
    ("3.13", "2.15.0", "2.5.5", "escnn-atompaint==1.1.0"),
    ("3.14", "2.6.0", "2.3.5", "escnn==1.0.11"),
    ("3.14", "2.9.1", "2.3.5", "escnn==1.0.11"),
    ("3.14", "2.15.0", "2.5.5", "escnn==1.0.11"),
)

#: Every room, in a minute on one core; what reaches into escnn, torch and numpy first.
SELECTION = (
    *("tests/house/test_installation.py", "tests/house/test_command_line.py", "tests/house/test_report.py"),
    *("tests/symmetry/test_input_irreps.py", "tests/nn/test_relaxed.py", "tests/morphism/test_harden.py"),
    *("tests/curvature/test_curvature_layers.py", "tests/diagnosis/test_planted_data.py"),
    *("tests/evidence/test_evidence_oracle.py", "tests/training/test_checkpoint.py"),
    "tests/training/test_fit.py::test_fit_returns_history_and_moves_precisions",
    "tests/search/test_search_differentiate.py::test_finds_that_the_symmetry_must_be_broken",
)

#: Where a Python is looked for beside the path.
PYTHONS = (
    "/usr/local/bin/python{0}",
    "~/.pyenv/versions/{0}.*/bin/python",
    "~/.local/share/uv/python/*{0}.*/bin/python",
)


def interpreter(version: str) -> str | None:
    """A Python of this version, if the machine has one."""
    found = [path for pattern in PYTHONS for path in glob.glob(os.path.expanduser(pattern.format(version)))]
    return next(iter(sorted(found)), None) or shutil.which(f"python{version}")


def reason(output: str) -> str:
    """What pip, or our own check at import, said last."""
    said = [line for line in output.splitlines() if "No matching distribution" in line or "InstallationError:" in line]
    said = said or [line for line in output.splitlines() if line.startswith("ERROR:") or "Error:" in line]
    text = re.sub(r".*InstallationError: |^ERROR: ", "", (said or output.splitlines() or ["nothing was said"])[0])
    return text.split(" (from versions")[0].split("; with Python")[0][:160]


def wheels(combination: tuple[str, ...], pip_args: str) -> str:
    """Whether pip finds wheels of torch and numpy for a Python that this machine lacks."""
    version, torch, numpy, _ = combination
    with tempfile.TemporaryDirectory() as folder:
        python = os.path.join(folder, "bin", "python")
        subprocess.run([interpreter("3.12") or "python3", "-m", "venv", folder], check=True)
        command = f"{python} -m pip install -q --dry-run --no-deps --only-binary :all: --python-version {version}"
        command += f" --target {folder}/none {pip_args} torch=={torch} numpy=={numpy} scipy"
        run = subprocess.run(command.split(), capture_output=True, text=True)
    return "wheels are there" if run.returncode == 0 else reason(run.stderr)


def prepare(combination: tuple[str, ...], venv: str, pip_args: str) -> str | None:
    """An environment of this combination at ``venv``; if there is one, only escnn is exchanged. The reason if it
    fails."""
    version, torch, numpy, escnn = combination
    if os.path.isdir(venv):
        pip = [f"{venv}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "uninstall", "-qy", *{c[3].split("==")[0] for c in COMBINATIONS}], capture_output=True)
        commands = [[*pip, "install", "-q", "--no-deps", *pip_args.split(), escnn]]
        commands += [[f"{venv}/bin/python", "-W", "ignore", "-c", "import escnn_relax"]]
    else:
        choices = [f"PYTHON={interpreter(version)}", f"TORCH=torch=={torch}", f"NUMPY=numpy=={numpy}", f"ESCNN={escnn}"]
        commands = [["make", "-C", str(ROOT), *choices, f"VENV={venv}", f"PIP_ARGS={pip_args}", "venv"]]
    environment = os.environ | {"PIP_ONLY_BINARY": "torch,numpy,scipy"}  # no compiling of what has no wheel
    for command in commands:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if run.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            return reason(run.stdout)
    return None


def examine(combination: tuple[str, ...], folder: str, arguments: argparse.Namespace) -> dict[str, object]:
    """One line of the record: what came of one combination."""
    version, torch, numpy, escnn = combination
    record: dict[str, object] = {"python": version, "torch": torch, "numpy": numpy, "escnn": escnn}
    if interpreter(version) is None:
        return record | {"reason": f"no Python {version} here to try it; {wheels(combination, arguments.pip_args)}"}
    venv = os.path.join(folder, "-".join(combination[:3]))
    for other in {"-".join(c[:3]) for c in COMBINATIONS} - {os.path.basename(venv)}:  # each takes some gigabytes
        shutil.rmtree(os.path.join(folder, other), ignore_errors=True)
    problem = prepare(combination, venv, arguments.pip_args)
    if problem is not None:
        return record | {"reason": problem}
    command = [f"{venv}/bin/python", "-m", "pytest", "-q", "--tb=line", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [] if arguments.whole else SELECTION
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    record["seconds"] = round(time.monotonic() - start)
    last = (run.stdout.strip().splitlines() or [run.stderr[-200:]])[-1]
    for word in ("passed", "failed", "skipped", "error"):
        found = re.search(rf"(\d+) {word}", last)
        record[word] = int(found.group(1)) if found else 0
    record["whole"] = arguments.whole
    record["failures"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if arguments.verbose:
        print(run.stdout[-6000:])
    return record


def draw(records: list[dict[str, object]]) -> str:
    """The table, in the order of COMBINATIONS."""
    lines = ["| Python | torch | numpy | escnn | result |", "|---|---|---|---|---|"]
    for record in records:
        if "reason" in record:
            result = str(record["reason"])
        else:
            result = ", ".join(f"{record[word]} {word}" for word in ("passed", "failed", "error") if record[word])
            result += " (whole quick suite)" if record["whole"] else ""
            result += f" ({record['note']})" if "note" in record else ""
        lines.append(
            "| " + " | ".join(str(record[key]) for key in ("python", "torch", "numpy", "escnn")) + f" | {result} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """\
# Versions that work together

`make matrix` makes an environment for each line and runs a selection of the quick tests that reaches every room
(`tests/benchmarks/matrix.py`), on one core; `make test PYTHON=… TORCH=… NUMPY=… ESCNN=…` tries one of them whole.
What could not be installed, or is refused, has the reason in place of a result.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="combinations whose text has this, e.g. 3.12 or escience")
    parser.add_argument("--whole", action="store_true", help="the whole quick suite, not the selection")
    parser.add_argument("--again", action="store_true", help="run what the record has already")
    parser.add_argument("--verbose", action="store_true", help="print the end of what the tests say")
    parser.add_argument("--pip-args", default="", help="for pip, e.g. an index of torch without CUDA")
    parser.add_argument("--folder", help="where to make the environments; the last stays there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="escnn_relax_matrix_") as temporary:
        folder = arguments.folder or temporary
        for combination in COMBINATIONS:
            records = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
            known = {tuple(r[key] for key in ("python", "torch", "numpy", "escnn")): r for r in records}
            if arguments.only in " ".join(combination) and (arguments.again or combination not in known):
                known[combination] = examine(combination, folder, arguments)
                print(json.dumps(known[combination]), flush=True)
            records = [known[c] for c in COMBINATIONS if c in known]
            RECORDS.write_text("".join(json.dumps(record) + "\n" for record in records))
            TABLE.write_text(HEAD + draw(records))


if __name__ == "__main__":
    main()
