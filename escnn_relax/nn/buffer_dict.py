"""Tensors of a module by name, as ``ParameterDict`` keeps parameters; and states that were written before there were
any."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["BufferDict", "rename_entries"]


class BufferDict(nn.Module):
    """A dictionary of buffers: they move with the module, and are in its state dict as ``<name of the
    dictionary>.<key>``.

    Args:
        buffers: tensors by key; keys have no dots.
        persistent: whether they are part of the state dict.

    >>> import torch
    >>> table = BufferDict({"rows": torch.arange(2)})
    >>> list(table), len(table), table["rows"], list(table.state_dict())
    (['rows'], 1, tensor([0, 1]), ['rows'])
    """

    def __init__(self, buffers: Mapping[str, Tensor] | None = None, persistent: bool = True) -> None:
        super().__init__()
        self._persistent = persistent
        for key, tensor in (buffers or {}).items():
            self[key] = tensor

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._buffers[key]
        if tensor is None:
            raise KeyError(key)
        return tensor

    def __setitem__(self, key: str, tensor: Tensor) -> None:
        self.register_buffer(key, tensor, self._persistent)

    def __delitem__(self, key: str) -> None:
        del self._buffers[key]

    def __contains__(self, key: object) -> bool:
        return key in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def keys(self) -> Iterator[str]:
        """The keys, in the order in which they were added."""
        return iter(self)

    def values(self) -> list[Tensor]:
        """The tensors, in that order."""
        return [self[key] for key in self]

    def items(self) -> list[tuple[str, Tensor]]:
        """Pairs of key and tensor, in that order."""
        return [(key, self[key]) for key in self]

    def extra_repr(self) -> str:
        return ", ".join(f"{key}: {tuple(tensor.shape)}" for key, tensor in self.items())


def rename_entries(state: dict[str, Any], prefix: str, pattern: str, name: str) -> None:
    """Rename, in place, the entries of a state dict under ``prefix`` whose rest a pattern matches from its beginning.

    Args:
        name: what takes the place of the match, as of :func:`re.sub`.

    >>> state = {"kernel.basis_0": 1, "kernel.basis_12": 2, "basis_0": 3}
    >>> rename_entries(state, "kernel.", r"basis_(\\d+)$", r"bases.\\1")
    >>> sorted(state)
    ['basis_0', 'kernel.bases.0', 'kernel.bases.12']
    """
    for key in [key for key in state if key.startswith(prefix)]:
        rest = re.sub(f"^{pattern}", name, key[len(prefix) :])
        if prefix + rest != key:
            state[prefix + rest] = state.pop(key)
