"""What every attention module answers to."""

import abc
from typing import Any

from flaxformer.types import Array


class DenseAttention(metaclass=abc.ABCMeta):
    """The interface of an attention module. One that follows it is `class Mine(nn.Module, DenseAttention)`."""

    @abc.abstractmethod
    def __call__(
        self,
        inputs_q: Array,
        inputs_kv: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        precomputed_qkv: Any = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Array:
        """Attends from `inputs_q [B T D]` to `inputs_kv [B S D]`."""
