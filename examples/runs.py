"""Runs of an experiment that are kept: one line of a file each, never done again."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from collections.abc import Callable, Iterable, Sequence


def arguments(doc: str, name: str, seeds: int) -> argparse.ArgumentParser:
    """The arguments that experiments share: data, seeds, processes, device, files, training loop, and one of three
    sizes or only the table."""
    import torch

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=Path(__file__).with_name(f"{name}_runs.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(f"{name}_table.md"))
    parser.add_argument("--published-loop", action="store_true", help="train as the paper did, see published_loop.py")
    for size in ("full", "quick", "table"):
        parser.add_argument(f"--{size}", action="store_true")
    return parser


def common_to_all(parser: argparse.ArgumentParser, given: argparse.Namespace, sizes: dict[str, dict]) -> dict:
    """What all runs have in common; an error where the data are missing."""
    if given.data is None:
        parser.error("--data is needed")
    scale, size = chosen_size(given, sizes)
    return {"scale": scale, "size": size, "folder": str(given.data), "device": given.device}


def chosen_size(given: argparse.Namespace, sizes: dict[str, dict]) -> tuple[str, dict]:
    """The name of the size that was asked for, ``"small"`` unless another was, and what it stands for; and of the
    loop."""
    name = next((size for size in ("full", "quick") if getattr(given, size)), "small")
    loop = ", published loop" if given.published_loop else ""
    return name + loop, {**sizes[name], "published": given.published_loop}


def write_table(given: argparse.Namespace, lines: list[dict], table: Callable[[list[dict]], str]) -> None:
    """To the file that was asked for, and to the terminal."""
    text = table(lines)
    given.out.write_text(text, encoding="utf-8")
    print(text)


def stored(path: Path) -> list[dict]:
    """The runs there are; a line that was cut off is left out, and its run repeated."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def work_off(
    jobs: Iterable[dict], run: Callable[[dict], dict], path: Path, key: Sequence[str], workers: int = 1
) -> list[dict]:
    """Do the runs that are not stored yet and store each as soon as it is done; returns all there are.

    Args:
        jobs: arguments of ``run``; a job and its result agree in the entries that ``key`` names.
        run: a function of a module, for it is called in other processes.
    """
    of = lambda line: tuple(line[name] for name in key)
    done = {of(line) for line in stored(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, job) for job in jobs if of(job) not in done]):
            line = json.dumps(future.result())
            cut_off = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
            with path.open("a", encoding="utf-8") as file:
                file.write(("\n" if cut_off else "") + line + "\n")
            print(line, flush=True)
    return stored(path)
