"""Depthwise convolution along the sequence: every channel is mixed with its own recent past.

    y_t = conv_0·x_t + conv_1·x_{t-1} + ... + conv_r·x_{t-r}

Causal, it is a memory of r tokens; a cache of the last r inputs makes prefill, chunk and single step one computation:

    history [B r ...], inputs [B T ...]  ->  extended [B r+T ...]  ->  outputs [B T ...], new history [B r ...]
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Shaped

from flaxformer.errors import UnsupportedError
from flaxformer.parameters import parameter
from flaxformer.step import Step
from flaxformer.types import Array, Initializer, PRNGKey, Shape


def constant_init(value: float) -> Initializer:
    """An initializer that fills with `value`."""

    def init(key: PRNGKey | None, shape: Shape, dtype: Any = jnp.float32) -> Array:
        del key
        return jnp.full(shape, value, dtype)

    return init


def roll_with_zeros(x: Shaped[Array, "..."], shift: Sequence[int]) -> Shaped[Array, "..."]:
    """`x` moved by `shift[i]` along each axis i, towards higher indices if positive; vacated places are zero.

    Raises:
      ValueError: for a shift that does not name every axis.

    >>> roll_with_zeros(jnp.arange(1, 4), [1])
    Array([0, 1, 2], dtype=int32)
    """
    if len(shift) != x.ndim:
        raise ValueError(f"shift is {tuple(shift)} for an array of rank {x.ndim}; expected one distance per axis.")
    for axis, distance in enumerate(shift):
        x = roll_with_zeros_along_axis(x, distance, axis)
    return x


def roll_with_zeros_along_axis(x: Shaped[Array, "..."], distance: int, axis: int) -> Shaped[Array, "..."]:
    """`x` moved by `distance` along one axis, towards higher indices if positive; vacated places are zero."""
    length = x.shape[axis]
    kept = jnp.moveaxis(x, axis, 0)[max(-distance, 0) : max(length - max(distance, 0), 0)]
    vacated = min(abs(distance), length)
    padding = (vacated, 0) if distance > 0 else (0, vacated)
    return jnp.moveaxis(jnp.pad(kept, [padding] + [(0, 0)] * (x.ndim - 1)), 0, axis)


class Depthwise1dConv(nn.Module):
    """Mixes each channel with its neighbours along the length, with one weight per channel and offset.

    The weight of a neighbour s steps back is `conv_s`, of one s steps ahead `conv_m{s}`. What lies outside the sequence
    counts as zero; packed sequences are not told apart.

    With a cache, `cached_x_s` keeps each row's input of s + 1 steps ago. Where `step.valid` says that inputs are
    padding, they count as zero, and what follows them in later calls continues behind the last real one. The real
    inputs of one call must be contiguous in each row.

    Attributes:
      axis_names: logical names of the feature axes.
      radius: how many neighbours to look at on a side, r.
      autoregressive: looks back only.
      dtype: accepted; inputs are computed with, and returned, in float32.
      length_dim: the axis of the sequence. Prefill and slots need 1.
      num_feature_dims: how many trailing axes have a weight per entry.
      use_in_mlp_parallel_fused_layer: accepted; inputs of any rank are treated alike.

    Source: So et al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling", section 4.
    """

    axis_names: Sequence[str]
    radius: int = 2
    autoregressive: bool = True
    dtype: Any = jnp.float32
    length_dim: int = 1
    num_feature_dims: int = 1
    use_in_mlp_parallel_fused_layer: bool = False

    @nn.compact
    def __call__(
        self,
        x: Shaped[Array, "..."],
        decode: bool = False,
        prefill: bool = False,
        prefill_lengths: Int[Array, " B"] | None = None,
        *,
        step: Step | None = None,
    ) -> Float[Array, "..."]:
        """Convolves `x` along its length.

        Args:
          x: `[B T D]`, or another layout that `length_dim` and `num_feature_dims` describe.
          decode: T5X's one-token step. Without a cache, makes one of zeros and convolves the whole of `x`.
          prefill: T5X's prefill: convolves the whole of `x`, and caches the last inputs before `prefill_lengths`.
          prefill_lengths: `[B]`, real tokens per row of the prefill.
          step: where the tokens stand; takes precedence over these keywords.

        Raises:
          ValueError: for a cache without `autoregressive`, off axis 1, or missing; for a decoding step of more than
            one token; for a step of branches; and for a prefill without lengths.
        """
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        x = jnp.asarray(x, jnp.float32)
        if self.length_dim != 1 and (step.prefill or step.use_cache or step.valid is not None):
            raise ValueError(
                f"length_dim is {self.length_dim}; expected 1 for prefill, and for a step with slots or valid."
            )
        if step.valid is not None:
            x = jnp.where(_match_rank(step.valid, x), x, 0.0)
        if not (step.use_cache or step.decode or step.prefill):
            return self._weigh(self._extend(x, [], ahead=not self.autoregressive), x)

        continues = self._continues(step, x)
        cached = [self._cached_input(s, x) for s in range(self.radius)]
        extended = self._extend(x, [variable.value for variable in reversed(cached)] if continues else [])
        first, end = _real_inputs(step, x.shape[self.length_dim])
        if continues and first is not None:
            extended = _close_gap(extended, self.radius, first)
        if continues or not step.decode:
            for s, variable in enumerate(cached):
                variable.value = _take_input(extended, end + self.radius - 1 - s, self.length_dim)
        return self._weigh(extended, x)

    @nn.nowrap
    def _continues(self, step: Step, x: Array) -> bool:
        """Whether the history is in the cache; refuses what a cache cannot serve."""
        if not self.autoregressive:
            raise ValueError(
                "a cache was asked for with autoregressive=False, whose outputs depend on later inputs; "
                "expected autoregressive=True, or neither decode, prefill nor a step with slots."
            )
        if step.prefill and step.lengths is None:
            raise UnsupportedError(
                "prefill=True came without prefill_lengths; pass the number of real tokens of each row."
            )
        has_cache = self.has_variable("cache", "cached_x_0")
        if step.visible is not None:
            raise ValueError(
                "the step is of branches that share a row; expected a row of its own for each, as the last inputs of "
                "each differ. flaxformer.decoding repeats rows for modules whose caches do not go by slots."
            )
        if step.use_cache:
            if not (step.fresh or has_cache or self.radius == 0):
                raise ValueError(
                    "the step continues a sequence, and the cache holds no inputs; expected that of earlier calls. "
                    "Make the first call with Step.start and mutable=['cache'], and pass its cache on."
                )
            return not step.fresh
        length = x.shape[self.length_dim]
        if step.decode and has_cache and length != 1:
            raise ValueError(f"decode=True came with inputs of length {length}; expected one token per call.")
        return step.decode and has_cache

    @nn.nowrap
    def _cached_input(self, s: int, x: Array) -> nn.Variable:
        shape = list(x.shape)
        shape[self.length_dim] = 1
        return self.variable("cache", f"cached_x_{s}", jnp.zeros, tuple(shape), jnp.float32)

    @nn.nowrap
    def _extend(self, x: Array, history: list[Array], ahead: bool = False) -> Array:
        """`x` behind its history, zeros where that is empty, and before zeros if `ahead`: `[B r+T ...]`."""
        if history:
            return jnp.concatenate([*history, x], axis=self.length_dim)
        padding = [(0, 0)] * x.ndim
        padding[self.length_dim] = (self.radius, self.radius if ahead else 0)
        return jnp.pad(x, padding)

    @nn.nowrap
    def _weigh(self, extended: Array, x: Array) -> Array:
        """The weighted sum of the neighbours of each of the inputs `x`, nearest first."""
        length, features = x.shape[self.length_dim], x.shape[x.ndim - self.num_feature_dims :]
        kernel_size = 1 + self.radius * (1 if self.autoregressive else 2)
        offsets = {f"conv_{s}": -s for s in range(self.radius + 1)}
        if not self.autoregressive:
            offsets |= {f"conv_m{s}": s for s in range(1, self.radius + 1)}
        y = jnp.zeros_like(x)
        for name, offset in offsets.items():
            init = constant_init(0.5 if offset == 0 else 0.5 / kernel_size)
            weight = parameter(self, name, init, features, axes=self.axis_names)
            start = self.radius + offset
            y = y + weight * jax.lax.slice_in_dim(extended, start, start + length, axis=self.length_dim)
        return y


def _real_inputs(step: Step, length: int) -> tuple[Int[Array, "#B"] | None, Any]:
    """Where each row's real inputs start, None if all do at 0, and where they end."""
    if step.prefill:
        return None, step.lengths
    if step.valid is None:
        return None, length
    first = jnp.argmax(step.valid, axis=-1)
    return first, first + jnp.sum(step.valid, axis=-1)


def _close_gap(extended: Shaped[Array, "B L ..."], radius: int, first: Int[Array, "#B"]) -> Shaped[Array, "B L ..."]:
    """Moves each row's history right, over the padding that precedes its first real input."""
    columns = jnp.arange(extended.shape[1])
    first = first[:, None]
    index = jnp.where(columns < radius + first, columns - first, columns)  # [#B L]
    return jnp.take_along_axis(extended, _match_rank(jnp.maximum(index, 0), extended), axis=1)


def _take_input(extended: Array, index: Int[Array, "#B"] | int, axis: int) -> Array:
    """The input at `index`, one for all rows or one for each, as a sequence of length 1."""
    if isinstance(index, int):
        return jax.lax.slice_in_dim(extended, index, index + 1, axis=axis)
    return jnp.take_along_axis(extended, _match_rank(index[:, None], extended), axis=axis)


def _match_rank(row: Shaped[Array, "#B L"], x: Array) -> Array:
    """`row` with axes of size 1 behind it, to broadcast against `x`."""
    return jnp.expand_dims(row, tuple(range(2, x.ndim)))
