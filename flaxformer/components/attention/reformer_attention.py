"""Attention in which queries are their own keys: the layer of Reformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.kernels.biases import Bias, FunctionBias
from flaxformer.components.attention.variants.lsh import Lsh
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.step import Step
from flaxformer.types import Array

OWN_POSITION = -1e5  # the paper's: so low that a token sees itself only where it sees nothing else


class SharedQueryKeyAttention(MultiHeadDotProductAttention):
    """Multi-head self-attention whose keys are its queries, `key = query / √mean(query²)`; there is no key kernel.

    Hashes of queries and of keys then agree, as hashing needs (`Lsh`). As a token's product with itself is its largest,
    it sees itself only where it sees nothing else. The attributes are those of `MultiHeadDotProductAttention`.

    Source: Kitaev et al. 2020, "Reformer", section 2, https://arxiv.org/abs/2001.04451
    """

    attention_fn: Callable[..., Array] = Lsh()

    @nn.nowrap
    def _position_scheme(self) -> OwnLast:
        return OwnLast(super()._position_scheme() or PositionScheme())

    @nn.nowrap
    def _heads(self, inputs_q, inputs_kv, precomputed_qkv, step: Step) -> tuple[Array, Array, Array]:
        if inputs_q is not inputs_kv or precomputed_qkv is not None or step.memory:
            raise ValueError(
                "SharedQueryKeyAttention got inputs_kv other than inputs_q, precomputed_qkv or cached encoder outputs; "
                "expected self-attention, the same array object twice: its queries are its keys."
            )
        if self.num_kv_heads not in (None, self.num_heads) or self.kernels_to_fuse is not None:
            raise ValueError(
                f"SharedQueryKeyAttention got num_kv_heads={self.num_kv_heads} and kernels_to_fuse="
                f"{self.kernels_to_fuse!r}; expected None: every query head is a key head, and has no key kernel."
            )
        query = self._project_query(inputs_q)
        features, names = query.shape[-2:], ["embed", "heads", "kv"]
        value = self._dense("value", features, self.kernel_init, names)(inputs_kv)
        return self._place_heads(query, _unit(query), value, step)


@dataclasses.dataclass(frozen=True)
class OwnLast:
    """A position scheme, and a bias against a token's own position.

    Attributes:
      scheme: the position scheme.
    """

    scheme: Any

    def rotate(self, x: Float[Array, "B T N H"], positions: Array) -> Float[Array, "B T N H"]:
        """As the scheme does."""
        rotate = getattr(self.scheme, "rotate", None)
        return x if rotate is None else rotate(x, positions)

    def bias(self, q_positions: Array, k_positions: Array) -> Bias:
        """What the scheme adds, and the low number where query and key stand at the same position."""
        own = FunctionBias(_own_position, None, 1, q_positions, k_positions)
        other = self.scheme.bias(q_positions, k_positions) if hasattr(self.scheme, "bias") else None
        return own + other

    def scores_bias(self, query: Array, key: Array, q_positions: Array, k_positions: Array) -> Array | Bias | None:
        """As the scheme does."""
        rule = getattr(self.scheme, "scores_bias", None)
        return None if rule is None else rule(query, key, q_positions, k_positions)


def _own_position(values: None, query_positions: Array, key_positions: Array) -> Float[Array, "#b 1 q k"]:
    return jnp.where(query_positions[:, None, :, None] == key_positions[:, None, None, :], OWN_POSITION, 0.0)


def _unit(query: Float[Array, "*B T N H"]) -> Float[Array, "*B T N H"]:
    wide = query.astype(jnp.promote_types(query.dtype, jnp.float32))
    return (wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-12)).astype(query.dtype)
