"""What every attention module answers to."""

from typing import Any

import flax.linen as nn

from flaxformer.types import Array


class DenseAttention(nn.Module):
    """The interface of an attention module, for anyone who writes another one."""

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
        raise NotImplementedError(
            "DenseAttention is an interface; use MultiHeadDotProductAttention or write a subclass."
        )
