"""Masks and biases as arrays, in the forms that google/flaxformer's layers take.

An entry above 0 means "may see"; the arrays are floating point unless asked otherwise, and have a head axis of size 1.
`flaxformer.components.attention.masks` says the same things symbolically, which kernels use better. All of these are
also found at `flaxformer.components.attention.dense_attention`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Num

from flaxformer.types import Array, DType


class RankMismatch(ValueError, AssertionError):
    """Arrays of different ranks were to be combined. Also an AssertionError, which callers of old may catch."""


def make_attention_mask(
    query_input: Num[Array, "*B T"],
    key_input: Num[Array, "*B S"],
    pairwise_fn: Callable[[Array, Array], Array] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype: DType = jnp.float32,
) -> Num[Array, "*X 1 T S"]:
    """The mask that `pairwise_fn` makes of one number per query and one per key.

    Args:
      query_input: `[B... T]`, for example `tokens > 0` or segment ids.
      key_input: `[B... S]`.
      pairwise_fn: called with `[B... T 1]` and `[B... 1 S]`; a product for padding, `jnp.equal` for segments.
      extra_batch_dims: how many axes of size 1 to put in front.
      dtype: of the result.

    Returns:
      `[1..., B..., 1, T, S]`.

    >>> make_attention_mask(jnp.array([[1, 1, 0]]), jnp.array([[1, 0]]))[0, 0]
    Array([[1., 0.],
           [1., 0.],
           [0., 0.]], dtype=float32)
    """
    mask = pairwise_fn(query_input[..., :, None], key_input[..., None, :])[..., None, :, :]
    return jnp.expand_dims(mask, tuple(range(extra_batch_dims))).astype(dtype)


def make_causal_mask(x: Array, extra_batch_dims: int = 0, dtype: DType = jnp.float32) -> Num[Array, "*X 1 T T"]:
    """The mask with which every position sees itself and what precedes it; only the shape of `x [B... T]` matters."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
    return make_attention_mask(positions, positions, jnp.greater_equal, extra_batch_dims, dtype)


def make_decoder_mask(
    decoder_target_tokens: Num[Array, "*B T"],
    dtype: DType,
    decoder_causal_attention: Num[Array, "*B T"] | None = None,
    decoder_segment_ids: Num[Array, "*B T"] | None = None,
) -> Num[Array, "*B 1 T T"]:
    """The self-attention mask of a decoder: causal, without padding, within segments, with a bidirectional prefix.

    Args:
      decoder_target_tokens: `[B... T]`, 0 at padding.
      dtype: of the result.
      decoder_causal_attention: `[B... T]`, 1 at positions of the prefix, which all see each other (before padding and
        segments apply), contiguous or not. None: no prefix.
      decoder_segment_ids: `[B... T]`, the example to which each token of a packed row belongs. None: one per row.
    """
    mask = make_causal_mask(decoder_target_tokens, dtype=bool)
    if decoder_causal_attention is not None:
        mask |= make_attention_mask(decoder_causal_attention, decoder_causal_attention, jnp.logical_and, dtype=bool)
    real = decoder_target_tokens > 0
    mask &= make_attention_mask(real, real, jnp.logical_and, dtype=bool)
    if decoder_segment_ids is not None:
        mask &= make_attention_mask(decoder_segment_ids, decoder_segment_ids, jnp.equal, dtype=bool)
    return mask.astype(dtype)


def combine_masks(*masks: Array | None, dtype: DType = jnp.float32) -> Array | None:
    """The conjunction of those masks that are given, which must be of one rank and broadcast; None without any."""
    given = _given("masks", masks)
    if not given:
        return None
    mask, *others = given
    for other in others:
        mask = jnp.logical_and(mask, other)
    return mask.astype(dtype)


def combine_biases(*masks: Array | None) -> Array | None:
    """The sum of those biases that are given, which must be of one rank and broadcast; None without any."""
    given = _given("biases", masks)
    return sum(given[1:], start=given[0]) if given else None


def _given(what: str, arrays: tuple[Array | None, ...]) -> list[Array]:
    given = [array for array in arrays if array is not None]
    if len({array.ndim for array in given}) > 1:
        raise RankMismatch(
            f"{what} of shapes {', '.join(str(array.shape) for array in given)} were to be combined; expected equal "
            "ranks. Add axes of size 1 where one lacks them."
        )
    return given


def shift_left(x: Array, axis: int = -1) -> Array:
    """`x` moved by one towards index 0, with a zero at the end.

    >>> shift_left(jnp.array([1, 2, 3]))
    Array([2, 3, 0], dtype=int32)
    """
    x = jnp.asarray(x)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, 1)
    first = 1 if x.shape[axis] else 0
    return jnp.take(jnp.pad(x, widths), jnp.arange(first, x.shape[axis] + first), axis=axis)


def get_decoder_logit_mask(decoder_input_tokens: Num[Array, "B T"], dtype: DType) -> Num[Array, "B T 1"]:
    """1 where a decoder's logits mean something, 0 at padding.

    The decoder's input is 0 at padding and also at the start of every example (BOS). A 0 counts as a start when a token
    follows, and at the first position.
    """
    real = (decoder_input_tokens > 0) | (shift_left(decoder_input_tokens) > 0)
    real |= jnp.arange(decoder_input_tokens.shape[-1]) == 0
    return real[..., None].astype(dtype)


def validate_dense_attention_call_parameter_shapes(
    inputs_q: Array, inputs_kv: Array, mask: Array | None, bias: Array | None, num_heads: int | None
) -> None:
    """Raises a ValueError unless an attention layer can be called with these.

    Args:
      inputs_q: `[B... T D]`.
      inputs_kv: `[B... S D]`.
      mask: `[B... #N #T S]` or None.
      bias: `[B... #N T S]` or None. While decoding one token, T and S may be those of the whole bias.
      num_heads: N. None: the mask's head axis says what is expected of the bias.
    """
    if inputs_q.ndim != inputs_kv.ndim:
        raise ValueError(
            f"inputs_q has shape {inputs_q.shape} and inputs_kv {inputs_kv.shape}; expected equal ranks. "
            "Give both the same batch axes."
        )
    if inputs_q.ndim < 3:
        raise ValueError(f"inputs_q has shape {inputs_q.shape}; expected [B... T D]. Add a batch axis.")
    if inputs_q.shape[-2] == 0 or inputs_kv.shape[-2] == 0:
        raise ValueError(
            f"inputs_q has shape {inputs_q.shape} and inputs_kv {inputs_kv.shape}; expected at least one query and one "
            "key to attend to."
        )
    if inputs_q.shape[:-3] != inputs_kv.shape[:-3]:
        raise ValueError(
            f"inputs_q has shape {inputs_q.shape} and inputs_kv {inputs_kv.shape}; expected equal outer batch axes, "
            f"got {inputs_q.shape[:-3]} and {inputs_kv.shape[:-3]}."
        )
    rank, query_length, key_length = inputs_q.ndim + 1, inputs_q.shape[-2], inputs_kv.shape[-2]
    if mask is not None:
        heads = {1, num_heads} if num_heads else None
        _check_axes("mask", mask, rank, heads, {1, query_length}, {key_length})
        num_heads = num_heads or mask.shape[-3]
    if bias is not None:
        heads = {1, num_heads} if num_heads else None
        queries, keys = ({length} if length != 1 else None for length in (query_length, key_length))
        _check_axes("bias", bias, rank, heads, queries, keys)


def _check_axes(name: str, array: Array, rank: int, *allowed: set[int] | None) -> None:
    """Raises unless the last axes `N T S` of `array` have an allowed size; None allows any."""
    if array.ndim != rank or any(
        choices and size not in choices for size, choices in zip(array.shape[-3:], allowed, strict=True)
    ):
        wanted = ", ".join(
            f"{axis} in {sorted(choices) if choices else 'any size'}"
            for axis, choices in zip(("N", "T", "S"), allowed, strict=True)
        )
        raise ValueError(
            f"{name} has shape {array.shape}; expected rank {rank} as in [B... N T S], with {wanted}. "
            "Was it built for other inputs, or is its head axis missing?"
        )
