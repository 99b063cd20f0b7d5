"""Attention in linear time and, while decoding, constant memory: a layer that sums keys and values by features.

    softmax(q · k) v   becomes   φ(q)ᵀ Σ φ(k) vᵀ / φ(q)ᵀ Σ φ(k)

Features are in `feature_maps`, sums in `linear_state`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jaxtyping import Bool, Float

from flaxformer.components.attention import linear_state, masks
from flaxformer.components.attention.cache import offsets
from flaxformer.components.attention.feature_maps import EluFeatures, FavorFeatures
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.attention.linear_state import Features, State
from flaxformer.components.attention.projections import HeadProjections, constrain_heads
from flaxformer.components.attention.scoring import fold_beams
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision


class LinearAttention(HeadProjections, DenseAttention):
    """Multi-head attention by features instead of scores, in time and memory proportional to the length.

    Its parameters are those of `MultiHeadDotProductAttention`, so that it can take over a trained model, and with
    `FavorFeatures` it approximates its softmax. Decoding remembers `[K M V]` numbers per row, not keys and values.

    Masks may be causal and hide padding; nothing else can be done with sums, and other masks and biases are refused.
    There are no attention weights, hence no dropout of them.

    Attributes:
      num_heads: query heads N.
      use_bias: biases on all projections.
      dtype: compute type of the projections; sums are made in float32.
      qkv_features: total width of the projected heads; None means the width of `inputs_q`.
      head_dim: width of one head H; None means `qkv_features // num_heads`.
      out_features: output width; None means the width of `inputs_q`.
      precision: of the projections.
      kernel_init: initialises key, value and out, and the query kernel where that has none of its own.
      q_kernel_init: of the query kernel. Unless `rescale_logits`, its values are divided by √H.
      bias_init: of the projection biases.
      rescale_logits: divide products of queries and keys by √H at run time.
      split_head_kernel: store kernels by head, `[D N H]`.
      num_kv_heads: key/value heads K, a divisor of N; None means N.
      positions: a position scheme that rotates; biases are refused.
      features: the feature map. With a random key named 'features' in `rngs`, each call draws new directions.
      chunk_size: tokens worked on at once.

    Source: Choromanski et al. 2020, "Rethinking Attention with Performers", https://arxiv.org/abs/2009.14794;
    Katharopoulos et al. 2020, "Transformers are RNNs", https://arxiv.org/abs/2006.16236.
    """

    num_heads: int
    use_bias: bool
    dtype: DType = jnp.float32
    qkv_features: int | None = None
    head_dim: int | None = None
    out_features: int | None = None
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    q_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros
    rescale_logits: bool = False
    split_head_kernel: bool = False
    num_kv_heads: int | None = None
    positions: PositionScheme | None = None
    features: FavorFeatures | EluFeatures | Any = FavorFeatures()
    chunk_size: int = 128

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "B T D"],
        inputs_kv: Float[Array, "B S Dkv"],
        mask: masks.Mask | Array | None = None,
        bias: Array | None = None,
        *,
        precomputed_qkv: None = None,
        decode: bool = False,
        enable_dropout: bool = True,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
        step: Step | None = None,
    ) -> Float[Array, "B T Dout"]:
        """Attends from `inputs_q` to `inputs_kv`.

        Args:
          inputs_q: `[B T D]`.
          inputs_kv: `[B S Dkv]`.
          mask: `Causal()`, `Padding`, `KeyLengths`, several of these, or an array that is alike for all queries.
          bias: must be None.
          precomputed_qkv: must be None.
          decode: T5X's protocol is not served, nor are `prefill` and `prefill_lengths`.
          enable_dropout: has no effect.
          step: where the tokens stand; with slots, the sums are kept in the collection 'cache'.

        Raises:
          ValueError: for masks and biases that sums cannot express, and for T5X's decoding protocol.
        """
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        self._refuse(bias, precomputed_qkv, step)
        causal, valid = read_mask(mask, inputs_kv.shape[1])
        query = self._query(inputs_q, step)
        if step.memory:
            query, _ = fold_beams(query, offsets(query.shape[1]), inputs_kv.shape[0])
            x = self._read_memory(query, inputs_kv, valid)
        else:
            x = self._attend(query, inputs_kv, causal, valid, step)
        x = x.reshape(*inputs_q.shape[:2], *x.shape[2:])  # beams unfolded: [B T N V]
        return self._project_out(x, inputs_q.shape[-1])

    @nn.nowrap
    def _refuse(self, bias: Array | None, precomputed_qkv: Any, step: Step) -> None:
        if bias is not None or precomputed_qkv is not None:
            name = "precomputed_qkv" if bias is None else "a bias"
            raise ValueError(
                f"LinearAttention got {name}; expected none: it has sums of features and no scores. "
                "Leave out relative position biases, and use positions=Rotary() or position embeddings."
            )
        if step.decode or step.prefill or step.visible is not None:
            name = "a step of branches" if step.visible is not None else "decode=True or prefill=True"
            raise ValueError(
                f"LinearAttention got {name}; expected a Step with slots, and a row of its own for each beam. "
                "Decode with flaxformer.decoding, or make the steps by Step.start and advance."
            )

    @nn.nowrap
    def _query(self, inputs_q: Array, step: Step) -> Float[Array, "B T N H"]:
        """Rotated, and of a size that suits keys: a factor may wander between the two, and equal sizes err least."""
        query = self._rotate(self._project_query(inputs_q), step)
        quarter = query.shape[-1] ** 0.25
        return query / quarter if self.rescale_logits else query * quarter

    @nn.nowrap
    def _key_value(self, inputs_kv: Array, width: int, step: Step) -> tuple[Array, Array]:
        key, value = self._project_key_value(inputs_kv, width)
        return self._rotate(key, step) / width**0.25, constrain_heads(value)

    @nn.nowrap
    def _rotate(self, x: Array, step: Step) -> Array:
        x = constrain_heads(x)
        if self.positions is None:
            return x
        at = offsets(x.shape[1]) if step.positions is None else step.positions
        if self.positions.bias(at, at) is not None or hasattr(self.positions, "scores_bias"):
            raise ValueError(
                f"LinearAttention got positions={self.positions}, which bias scores; expected a scheme that rotates, "
                "as there are no scores. Use Rotary()."
            )
        return self.positions.rotate(x, at)

    @nn.nowrap
    def _features(self, width: int) -> Features:
        rng = self.make_rng("features") if self.has_rng("features") else None
        directions = self.features.draw(width, "/".join(self.path), rng)
        return functools.partial(self.features.logarithms, directions=directions)

    @nn.nowrap
    def _attend(self, query: Array, inputs_kv: Array, causal: bool, valid: Array | None, step: Step) -> Array:
        key, value = self._key_value(inputs_kv, query.shape[-1], step)
        if causal and query.shape[1] != key.shape[1]:
            raise ValueError(
                f"a causal mask came with {query.shape[1]} queries and {key.shape[1]} keys; expected as many of one as "
                "of the other, the same tokens."
            )
        if step.use_cache and valid is not None:
            raise ValueError(
                "LinearAttention got a mask of keys along with cache slots; expected none: what was summed cannot be "
                "hidden later. Say which tokens are padding by `valid` of the Step."
            )
        valid = step.valid if valid is None and key.shape[1] == query.shape[1] else valid
        valid = jnp.ones((1, key.shape[1]), bool) if valid is None else valid
        features = self._features(query.shape[-1])
        state = linear_state.empty_state(key, value, features)
        if step.use_cache and not step.fresh:
            state = self._stored("cache", state)
        attend = linear_state.attend_causally if causal else linear_state.attend_all
        x, state = attend(query, key, value, valid, features, state, self.chunk_size)
        if step.use_cache:
            self._store("cache", state)
        return x

    @nn.nowrap
    def _read_memory(self, query: Array, inputs_kv: Array, valid: Array | None) -> Array:
        """Reads the sums of the encoder's keys and values, which are made once per sequence."""
        features = self._features(query.shape[-1])
        if self.has_variable("cross_cache", "linear_weights"):
            fields = (self.get_variable("cross_cache", f"linear_{name}") for name in State._fields)
            return linear_state.read_all(query, features, State(*fields), self.chunk_size)
        key, value = self._key_value(inputs_kv, query.shape[-1], Step())
        valid = jnp.ones((1, key.shape[1]), bool) if valid is None else valid
        state = linear_state.empty_state(key, value, features)
        state = linear_state.absorb_all(key, value, valid, features, state, self.chunk_size)
        if self.is_mutable_collection("cross_cache") and not self.is_initializing():
            self._store("cross_cache", state)
        return linear_state.read_all(query, features, state, self.chunk_size)

    @nn.nowrap
    def _stored(self, collection: str, like: State) -> State:
        if not self.has_variable(collection, "linear_weights"):
            raise ValueError(
                f"{'/'.join(self.path)} has no 'linear_weights' in the collection '{collection}'; expected the cache "
                "of an earlier call. Make the first call of a batch with Step.start and "
                "mutable=['cache', 'cross_cache']."
            )
        stored = State(*(self.get_variable(collection, f"linear_{name}") for name in State._fields))
        return State(*(x.astype(y.dtype) for x, y in zip(stored, like, strict=True)))

    @nn.nowrap
    def _store(self, collection: str, state: State) -> None:
        if not self.is_mutable_collection(collection):
            raise ValueError(
                f"{'/'.join(self.path)} is to write its sums, but the collection '{collection}' is not mutable; "
                "expected mutable=['cache', 'cross_cache'] with the first call of a batch and mutable=['cache'] with "
                "later ones."
            )
        for name, x in state._asdict().items():
            self.put_variable(collection, f"linear_{name}", x)


def read_mask(mask: masks.Mask | Array | None, key_length: int) -> tuple[bool, Bool[Array, "#B S"] | None]:
    """Whether a mask is causal, and which keys it shows to all queries alike (None: every key).

    Padding of queries is left out: what padding attends to means nothing.

    Raises:
      ValueError: for what sums over keys cannot express, by name.
    """
    mask = masks.as_mask(mask)
    parts = () if mask is None else mask.parts if isinstance(mask, masks.And) else (mask,)
    causal, valid = False, None
    for part in parts:
        if isinstance(part, masks.Window) and part.left is None and part.right == 0 and part.query_positions is None:
            causal = True
            continue
        shown = _shown_keys(part, key_length)
        if shown is not None:
            valid = shown if valid is None else valid & shown
    return causal, valid


def _shown_keys(part: masks.Mask, key_length: int) -> Bool[Array, "#B S"] | None:
    if isinstance(part, masks.Padding):
        return part.key_valid
    if isinstance(part, masks.KeyLengths):
        return part.block(0, 1, 0, key_length)[:, 0, 0]
    if isinstance(part, masks.ArrayMask):
        shape = (1,) * (4 - part.array.ndim) + part.array.shape
        if shape[1] == shape[2] == 1:
            return jnp.broadcast_to(part.array.reshape(shape)[:, 0, 0], (shape[0], key_length))
        name = f"an array mask of shape {part.array.shape}"
    else:
        bound = isinstance(part, masks.Window) and part.query_positions is not None
        name = f"the mask {type(part).__name__}{' at positions of its own' * bound}"
    raise ValueError(
        f"LinearAttention got {name}; expected Causal(), Padding or KeyLengths, or an array [#B 1 1 S]: a sum over "
        "keys is the same for all queries that read it. Use MultiHeadDotProductAttention for other masks."
    )
