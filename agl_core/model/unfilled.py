"""Networks without their random initial weights, for those that get all of their weights from a file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

RANDOM: frozenset[Callable[..., Any]] = frozenset(
    [
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
    ]
)
"""What encoders fill their parameters with."""


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in RANDOM:
            tensor = args[0] if args else given.get("tensor")
            # Not of buffers: those that are no part of the state would stay without values.
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **given)


@contextmanager
def unfilled() -> Iterator[None]:
    """Parameters of networks that are built within this are not drawn: they hold what was in memory, until a state is
    loaded into all of them. Drawing them takes longer than all the rest of building a large network."""
    with _Unfilled():
        yield
