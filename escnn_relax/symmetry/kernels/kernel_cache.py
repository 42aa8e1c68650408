"""Kernels that were built once: in memory for this process, on disk for the next.

Building the kernels of all irreps takes seconds to minutes for large groups, loading them a fraction of it
(``tests/benchmarks/graded.md``). For one pair of an input and an output representation of sizes i and o, with S pixels
of which the band limit leaves B free directions (6 of 9, 11 of 25, 18 of 49), the whole grading takes ``8 (o i)^2 B S``
bytes, without the equivariant part: 8 MB for regular fields of C8 at size 5, 135 MB for D8. A layer of any number of
such fields needs them once, in the same process or another.

==================  ==============================================================================================
folder              ``$ESCNN_RELAX_CACHE``, else ``$XDG_CACHE_HOME/escnn_relax``, else ``~/.cache/escnn_relax``
switched off by     ``ESCNN_RELAX_CACHE=off`` (on disk only)
kept in memory      the most recently used, :data:`MEMORY_LIMIT` bytes
kept on disk        the most recently used, :data:`DISK_LIMIT` bytes, of what took :data:`WORTHWHILE` seconds to build
==================  ==============================================================================================

A file is written under another name and then renamed, so that processes can share the folder. One that cannot be read
or written is passed over, with one warning in the log ``escnn_relax``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["CacheSize", "announce", "clear", "folder", "kernels", "size", "MEMORY_LIMIT", "DISK_LIMIT", "WORTHWHILE"]

#: Bytes kept in memory: 256 MiB.
MEMORY_LIMIT = 2**28

#: Bytes kept on disk: 2 GiB.
DISK_LIMIT = 2**31

#: Seconds of building from which on kernels are written to disk.
WORTHWHILE = 0.01

#: Seconds of building after which a line in the log says what is going on.
SILENCE = 5.0

_OFF = ("off", "0", "none", "no", "false")
_SUFFIX, _PARTIAL = ".kernels", ".partial"
_LOG = logging.getLogger("escnn_relax")
_MEMORY: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
_LOCK = threading.Lock()
_BUILDING = threading.local()
_warned = False


@dataclass(frozen=True)
class CacheSize:
    """What the cache takes.

    Attributes:
        memory_bytes, disk_bytes: bytes in this process and in the folder.
        files: number of files in the folder.
    """

    memory_bytes: int
    disk_bytes: int
    files: int


def folder() -> Path | None:
    """The folder of the cache, which may not exist yet; ``None`` where it is switched off."""
    path = os.environ.get("ESCNN_RELAX_CACHE", "").strip()
    if path.lower() in _OFF:
        return None
    if path:
        return Path(path).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path("~/.cache").expanduser()) / "escnn_relax"


def size() -> CacheSize:
    """Bytes in memory, bytes and files on disk."""
    files = _files()
    with _LOCK:
        memory_bytes = sum(_bytes(k) for k in _MEMORY.values())
    return CacheSize(memory_bytes, sum(f.bytes for f in files), len(files))


def clear(memory: bool = True, disk: bool = True) -> None:
    """Forget all kernels: in memory, and on disk (only files that this cache wrote)."""
    if memory:
        with _LOCK:
            _MEMORY.clear()
    if disk:
        for file in _files() + _files(_PARTIAL):
            file.path.unlink(missing_ok=True)


def kernels(key: str, build: Callable[[], dict[str, Tensor]], description: str = "kernels") -> dict[str, Tensor]:
    """The kernels under a key, from memory, from disk or newly built.

    Args:
        key: a hash, in hexadecimal digits, of all that the kernels depend on.
        build: makes the kernels of each pathway, float64.
        description: of the kernels, for the line that is logged if building takes more than :data:`SILENCE` seconds.

    Returns:
        the kernels by pathway; they are the cache's own, not to be written to.
    """
    tensors = _MEMORY.get(key)
    if tensors is None:
        tensors = _load(key)
        if tensors is None:
            start = time.perf_counter()
            with announce(description):
                tensors = {name: tensor.contiguous() for name, tensor in build().items()}
            if time.perf_counter() - start >= WORTHWHILE:
                _save(key, tensors)
    with _LOCK:
        _MEMORY[key] = tensors
        _MEMORY.move_to_end(key)
        total = sum(_bytes(k) for k in _MEMORY.values())
        while _MEMORY and total > MEMORY_LIMIT:
            total -= _bytes(_MEMORY.popitem(last=False)[1])
    return tensors


@contextmanager
def announce(description: str) -> Iterator[None]:
    """Say so, once, where what is done within takes more than :data:`SILENCE` seconds; within another, nothing.

    Args:
        description: of what is being built.
    """
    if getattr(_BUILDING, "announced", False):
        yield
        return
    directory = folder()
    consequence = (
        f"they are kept in {directory} for the next time"
        if directory
        else "ESCNN_RELAX_CACHE is off, so they are not kept on disk"
    )
    line = f"still building {description}, after {SILENCE:g} s; {consequence}"
    timer = threading.Timer(SILENCE, _LOG.warning, (line,))
    timer.daemon = True
    timer.start()
    _BUILDING.announced = True
    try:
        yield
    finally:
        _BUILDING.announced = False
        timer.cancel()


def _bytes(kernels: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in kernels.values())


def _checksum(kernels: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(kernels):
        digest.update(f"{name} {tuple(kernels[name].shape)} ".encode())
        digest.update(kernels[name].numpy().data)
    return digest.hexdigest()


def _load(key: str) -> dict[str, Tensor] | None:
    directory = folder()
    path = None if directory is None else directory / f"{key}{_SUFFIX}"
    try:
        if path is None or not path.is_file():
            return None
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["key"] != key or content["checksum"] != _checksum(content["kernels"]):
            raise ValueError("the content does not match its name")
        os.utime(path)  # so that the oldest is the one not used for longest
        return dict(content["kernels"])
    except Exception as error:  # torch.load fails in many ways on a damaged file
        _warn(f"cannot read {path} ({type(error).__name__}: {error}); its kernels are built anew")
        return None


def _save(key: str, kernels: dict[str, Tensor]) -> None:
    directory = folder()
    if directory is None or _bytes(kernels) > DISK_LIMIT:
        return
    temporary = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, suffix=_PARTIAL, delete=False) as file:
            temporary = Path(file.name)
            torch.save({"key": key, "checksum": _checksum(kernels), "kernels": kernels}, file)
        os.replace(temporary, directory / f"{key}{_SUFFIX}")
        _evict()
    except Exception as error:  # torch.save raises RuntimeError for a full disk
        _warn(f"cannot write kernels to {directory} ({type(error).__name__}: {error}); they stay in memory")
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int
    access_time: float


def _files(suffix: str = _SUFFIX) -> list[_File]:
    directory = folder()
    files = []
    if directory is not None and directory.is_dir():
        for path in directory.glob(f"*{suffix}"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            files.append(_File(path, status.st_size, status.st_mtime))
    return files


def _evict() -> None:
    for file in _files(_PARTIAL):
        if file.access_time < time.time() - 3600:  # left behind by a process that was killed
            file.path.unlink(missing_ok=True)
    files = sorted(_files(), key=lambda f: f.access_time)
    total = sum(f.bytes for f in files)
    for file in files:
        if total <= DISK_LIMIT:
            break
        file.path.unlink(missing_ok=True)
        total -= file.bytes


def _warn(problem: str) -> None:
    global _warned
    if not _warned:
        _LOG.warning(problem)
    _warned = True
