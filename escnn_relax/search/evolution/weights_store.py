"""Where a search keeps the weights of its individuals and the course of its generations: in memory, or on disk."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import CheckpointError
from ...training import checkpoint as disk
from .network import read
from .task import Outcome

__all__ = ["Store", "fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, so that a search is not continued with others."""
    digest = hashlib.sha256()
    for name, value in read(model).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Store:
    """Outcomes by id, and the record of finished generations; each file is written whole or not at all.

    Args:
        folder: of the checkpoint, ``None`` to keep all in memory.
        run: what decides about the result, as plain values.

    Raises:
        CheckpointError: something else of the folder's name.
    """

    def __init__(self, folder: None | str | Path, run: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            remedy = "name a folder, or remove the file"
            raise CheckpointError(
                str(folder), "is a file", expected="a folder, which is made if need be", remedy=remedy
            )
        self.run = disk.plain(run)
        self._outcomes: dict[int, Outcome] = {}

    def generations(self) -> list[dict[str, Any]]:
        """The finished generations, as they were recorded; ``CheckpointError`` for those of another search."""
        if self.folder is None or not (self.folder / "search.pt").exists():
            return []
        return disk.load(self.folder / "search.pt", self.run)["generations"]

    def record(self, generations: list[dict[str, Any]], keep: set[int]) -> None:
        """Store the finished generations, then forget the weights of all but these individuals."""
        if self.folder is not None:
            disk.save(self.folder / "search.pt", {"run": self.run, "generations": generations})
            for path in (self.folder / "individuals").glob("*.pt"):
                if path.stem.isdigit() and int(path.stem) not in keep:
                    path.unlink(missing_ok=True)
        self._outcomes = {id: outcome for id, outcome in self._outcomes.items() if id in keep}

    def put(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._outcomes[outcome.id] = outcome
        if self.folder is not None:
            disk.save(_path(self.folder, outcome.id), {"run": self.run, "outcome": asdict(outcome)})

    def get(self, id: int) -> Outcome | None:
        """The outcome of an individual, ``None`` if there is none."""
        if id not in self._outcomes and self.folder is not None and _path(self.folder, id).exists():
            self._outcomes[id] = Outcome(**disk.load(_path(self.folder, id), self.run)["outcome"])
        return self._outcomes.get(id)

    def outcome(self, id: int) -> Outcome:
        """The outcome of an individual that was made; ``CheckpointError`` if it is gone."""
        outcome = self.get(id)
        if outcome is None:
            remedy = "delete the checkpoint, or name another folder"
            raise CheckpointError(str(self.folder), f"the weights of individual {id} are gone", remedy=remedy)
        return outcome


def _path(folder: Path, id: int) -> Path:
    return folder / "individuals" / f"{id}.pt"
