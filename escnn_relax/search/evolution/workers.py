"""Working off tasks: in this process, or in several that may die."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from ...errors import ArgumentError, SearchError
from ...evidence.random_state import random_state_kept
from .task import Context, Outcome, Task

__all__ = ["Crew"]

_CONTEXT: Any = None  # a Context, in a worker


def _enter(payload: bytes, dtype: torch.dtype) -> None:
    """What a worker does first."""
    global _CONTEXT
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    _CONTEXT = pickle.loads(payload)


def _work(task: Task) -> Outcome:
    return _CONTEXT.work(task)


class Crew:
    """Makes individuals, each from its own seed on one thread, so that their number of workers changes nothing.

    Args:
        workers: processes; 1 works in this one.
        retries: how often a generation goes on after a worker died.
    """

    def __init__(self, context: Context, workers: int, retries: int) -> None:
        self.context, self.workers, self.retries = context, workers, retries
        self._pool: ProcessPoolExecutor | None = None
        self._payload = b""
        if workers > 1:
            try:
                self._payload = pickle.dumps(context)
            except Exception as error:  # pickle raises whatever the object does
                raise ArgumentError(
                    "evolve",
                    f"something cannot be sent to worker processes ({type(error).__name__}: {error})",
                    remedy=(
                        "define score, loss, optimizer and the model's class at the top level of a module, or workers=1"
                    ),
                ) from error

    def run(self, tasks: Sequence[Task], done: Callable[[Outcome], None]) -> None:
        """Work off tasks; ``done`` is called with each outcome as soon as it is there.

        Raises:
            SearchError: workers died more often than ``retries``; what was done before is done.
        """
        if self.workers == 1:
            for task in tasks:
                with _quiet(self.context):
                    outcome = self.context.work(task)
                done(outcome)
            return
        pending, deaths = {task.id: task for task in tasks}, 0
        while pending:
            death, futures = None, []
            try:
                futures += [self._submit(task) for task in pending.values()]
                for future in as_completed(futures):
                    try:
                        outcome = future.result()
                    except BrokenProcessPool as error:  # others may have finished before
                        death = error
                        continue
                    del pending[outcome.id]
                    done(outcome)
            except BrokenProcessPool as error:  # it broke while tasks were handed over
                death = error
            except BaseException:
                self.close()  # waits for what is in work, which is kept
                for future in futures:
                    if future.done() and not future.cancelled() and future.exception() is None:
                        if pending.pop(future.result().id, None) is not None:
                            done(future.result())
                raise
            if death is not None:
                self.close()
                deaths += 1
                if deaths > self.retries:
                    raise SearchError(
                        "evolve",
                        f"worker processes died {deaths} times while individuals {sorted(pending)} were in work",
                        remedy="check memory and the score function, or workers=1; finished individuals are kept",
                    ) from death

    def _submit(self, task: Task) -> Future[Outcome]:
        if self._pool is None:
            start: dict[str, Any] = {"initializer": _enter, "initargs": (self._payload, torch.get_default_dtype())}
            self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), **start)
        return self._pool.submit(_work, task)

    def close(self) -> None:
        """Let the workers go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


@contextmanager
def _quiet(context: Context) -> Iterator[None]:
    """One thread, and the caller's random numbers as they were."""
    threads = torch.get_num_threads()
    device = next(context.shells.template.parameters()).device
    with random_state_kept(device):
        try:
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
