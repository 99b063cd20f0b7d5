"""Multi-head latent attention: keys and values of all heads come from one short vector per token, which is cached.

    c = norm(x · W_down)          latent [B S L]
    r = rotate(x · W_rotary)      rotated key [B S R]; c and r are all that is cached
    key_n   = [c · W_key_n, r]    per head n, H unrotated features and R rotated ones
    value_n = c · W_value_n
    score   = query_n · key_n / √(H + R)

While decoding, keys and values are never made: `q · (c · W) = (q · Wᵀ) · c`, so that queries are brought to the latents
and one shared "key head" `[c, r]` with the value `c` serves all heads, as in multi-query attention.

Glossary: L latent width, R rotated features, H the others of a query or key head, V features of a value head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jaxtyping import Float

from flaxformer.components import dense
from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.caches import Cache, FullCache
from flaxformer.components.attention.dot_product_layer import DotProductAttention
from flaxformer.components.attention.masks import Mask
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.parameters import parameter
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision, PRNGKey, Shape


class MultiHeadLatentAttention(DotProductAttention):
    """Attention of N heads over latents of width L; a token costs L + R numbers in the cache instead of 2·N·H.

    The cache is that of the other layers with one head: `cached_key [B 1 R S]` holds rotated keys and
    `cached_value [B 1 L S]` latents.

    Attributes:
      num_heads: N.
      latent_width: L.
      head_dim: H, features of a query or key head that are not rotated.
      rotary_dim: R, features that are; keys have one such vector for all heads.
      value_dim: V, features of a value head; None means H.
      query_latent_width: width of a latent that queries are made from; None makes them from the input.
      out_features: output width; None means the width of `inputs_q`.
      use_bias: biases on the projections down to latents, to rotated keys, to queries without latent and out.
      dtype: compute type; parameters are float32.
      broadcast_dropout: one dropout mask for all query positions.
      dropout_rate: share of attention weights dropped in training.
      precision: of the matrix products.
      kernel_init: initialises all kernels.
      bias_init: of the projection biases.
      scale: of the logits; None means 1/√(H + R). Already in the queries that `attention_fn` is given.
      attention_fn: as in `MultiHeadDotProductAttention`. It is given the heads while training, and one key head over
        the latents where queries are fewer than keys.
      use_extra_logit: let attention rest on nothing.
      float32_logits: logits and softmax in float32.
      positions: rotates the R features.
      reach: a symbolic mask of this layer's own.
      epsilon: of the root-mean-square norms of the latents.
      absorb: True always brings queries to the latents, False always makes keys and values; None chooses the former
        where queries are fewer than keys, as when decoding.
      cache: how latents and rotated keys are kept while decoding; see `MultiHeadDotProductAttention`.
      dense_general_factory: makes the projections.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1, https://arxiv.org/abs/2405.04434
    """

    num_heads: int
    latent_width: int
    head_dim: int
    rotary_dim: int
    value_dim: int | None = None
    query_latent_width: int | None = None
    out_features: int | None = None
    use_bias: bool = False
    dtype: DType = jnp.float32
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros
    scale: float | None = None
    attention_fn: Callable[..., Array] = dot_product_attention
    use_extra_logit: bool = False
    float32_logits: bool = False
    positions: PositionScheme | nn.Module | None = Rotary()
    reach: Mask | None = None
    epsilon: float = 1e-6
    absorb: bool | None = None
    cache: Cache = FullCache()
    dense_general_factory: Callable[..., nn.Module] = dense.DenseGeneral

    qkv_features = q_kernel_init = None
    split_head_kernel = rescale_logits = False

    @nn.nowrap
    def _heads(self, inputs_q, inputs_kv, precomputed_qkv, step: Step) -> tuple[Array, Array, Array]:
        """Queries `[B T N H+R]`, rotated keys `[B S 1 R]` and latents `[B S 1 L]`."""
        if precomputed_qkv is not None or step.memory:
            raise ValueError(
                "MultiHeadLatentAttention got precomputed_qkv or cached encoder outputs; expected self-attention. "
                "Use MultiHeadDotProductAttention for cross-attention."
            )
        query = self._project_query(inputs_q) * self._scale
        query, rotated = jnp.split(query, [self.head_dim], axis=-1)
        latent = self._norm("key_value", self._down("key_value", self.latent_width)(inputs_kv))
        key = self._down("rotary_key", self.rotary_dim)(inputs_kv)[..., None, :]
        rotated, key, latent = self._place_heads(rotated, key, latent[..., None, :], step)
        return jnp.concatenate([query, rotated], axis=-1), key, latent

    @property
    def _scale(self) -> float:
        return (self.head_dim + self.rotary_dim) ** -0.5 if self.scale is None else self.scale

    @nn.nowrap
    def _project_query(self, inputs_q: Array) -> Float[Array, "B T N H+R"]:
        shape = self.num_heads, self.head_dim + self.rotary_dim
        if self.query_latent_width is None:
            return self._dense("query", shape, self.kernel_init, ["embed", "heads", "kv"])(inputs_q)
        latent = self._norm("query", self._down("query", self.query_latent_width)(inputs_q))
        kernel = self._up("query", self.query_latent_width, shape[1])
        return jnp.einsum("...l,lnh->...nh", latent, kernel, precision=self.precision)

    @nn.nowrap
    def _attend(self, query: Array, key: Array, value: Array, *, mask, bias, enable_dropout: bool) -> Array:
        """Attends over latents `value [B S 1 L]` and rotated keys `key [B S 1 R]`."""
        key_up = self._up("key", self.latent_width, self.head_dim)
        value_up = self._up("value", self.latent_width, self.value_dim or self.head_dim)
        options = {"mask": mask, "bias": bias, "enable_dropout": enable_dropout}
        absorb = query.shape[-3] < key.shape[-3] if self.absorb is None else self.absorb
        if absorb:
            plain, rotated = jnp.split(query, [self.head_dim], axis=-1)
            plain = jnp.einsum("...nh,lnh->...nl", plain, key_up, precision=self.precision)  # [B T N L]
            query, key = jnp.concatenate([plain, rotated], axis=-1), jnp.concatenate([value, key], axis=-1)
            x = super()._attend(query, key, value, **options)  # [B T N L]
            return jnp.einsum("...nl,lnv->...nv", x, value_up, precision=self.precision)
        latent, rotated = value[..., 0, :], jnp.broadcast_to(key, (*key.shape[:-2], self.num_heads, key.shape[-1]))
        keys = jnp.einsum("...l,lnh->...nh", latent, key_up, precision=self.precision)
        values = jnp.einsum("...l,lnv->...nv", latent, value_up, precision=self.precision)
        return super()._attend(query, jnp.concatenate([keys, rotated], axis=-1), values, **options)

    @nn.nowrap
    def _down(self, name: str, width: int) -> nn.Module:
        return self._dense(f"{name}_down", (width,), self.kernel_init, ["embed", "unmodeled"])

    @nn.nowrap
    def _norm(self, name: str, x: Array) -> Array:
        return T5LayerNorm(self.epsilon, self.dtype, scale_axis_name="unmodeled", name=f"{name}_norm")(x)

    @nn.nowrap
    def _up(self, name: str, latent: int, width: int) -> Float[Array, "L N X"]:
        """A kernel from latents to heads, which decoding applies from its other side."""

        def flat_init(key: PRNGKey, shape: Shape, dtype: DType) -> Array:  # initialised as `DenseGeneral` does it
            return self.kernel_init(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)

        shape, axes = (latent, self.num_heads, width), ("unmodeled", "heads", "kv")
        return parameter(self, f"{name}_up", flat_init, shape, axes=axes).astype(self.dtype)
