"""The cache as T5X's decoding loop drives it: the layer counts tokens itself.

A first call with `decode` or `prefill` only creates the variables. A prefill stores a full-length prompt of which row b
counts `prefill_lengths[b]` tokens, and each decode call stores one token at every row's own `cache_index`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from flaxformer.components.attention.caches import FullCache, Place, from_cache, offsets, to_cache
from flaxformer.components.attention.masks import Mask
from flaxformer.errors import WrongTypeError
from flaxformer.step import Step
from flaxformer.types import Array, DType


class CountedCache(nn.Module):
    """What the attention modules add for T5X's protocol; the two `update_*` methods may be overridden.

    Every token has a slot here, whatever the kind of `cache`, of which only the dtype counts.
    """

    cache = FullCache()

    @nn.nowrap
    def _cache_variable(self, name: str, shape: tuple[int, ...], dtype: DType) -> Any:
        return self.variable("cache", name, jnp.zeros, shape, dtype)

    @nn.nowrap
    def _cache_variables(self, key: Array, value: Array) -> tuple[Any, Any, Any]:
        """The variables `cached_key`, `cached_value` and `cache_index`, created when absent."""
        dtype = getattr(self.cache, "dtype", None)
        return (
            self._cache_variable("cached_key", self._to_stored(key).shape, dtype or key.dtype),
            self._cache_variable("cached_value", self._to_stored(value).shape, dtype or value.dtype),
            self._cache_variable("cache_index", self._index_shape(key), jnp.int32),
        )

    @nn.nowrap
    def _index_shape(self, key: Array) -> tuple[int, ...]:
        """One index for all rows at first; a prefill replaces it by one per row."""
        return ()

    @nn.nowrap
    def _to_stored(self, x: Array) -> Array:
        return to_cache(x)

    @nn.nowrap
    def _from_stored(self, x: Array) -> Array:
        return from_cache(x)

    @nn.nowrap
    def counted_positions(self, step: Step, length: int) -> Int[Array, "#B T"]:
        """Positions of this call's tokens: the cache's index in a decode step, else 0 .. length-1."""
        if step.decode and self.has_variable("cache", "cache_index"):
            return self.get_variable("cache", "cache_index").reshape(-1)[:, None]
        return offsets(length)

    @nn.nowrap
    def append_counted(
        self, key: Array, value: Array, step: Step, mask: Mask | None
    ) -> tuple[Array, Array, Int[Array, " B"] | None]:
        """Stores this call's keys and values.

        Args:
          key: `[... T K H]`.
          value: `[... T K Hv]`.
          step: with `decode` or `prefill`.
          mask: counts a prefill's tokens when `step.lengths` is None.

        Returns:
          key and value to attend to, and the index of the decoded token per row (None unless a token was decoded).
        """
        exists, dtype = self.has_variable("cache", "cached_key"), key.dtype
        variables = self._cache_variables(key, value)
        if not exists:
            return key, value, None
        if step.prefill:
            lengths = step.lengths if step.lengths is not None else _count(mask, key.shape[-3])
            key, value, _, *updated = self.update_cache_prefill(key, value, *variables, lengths)
            index = None
        else:
            self._check_single_token(key, variables[0].value)
            key, value, index, *updated = self.update_cache_decode(key, value, *variables)
        for variable, new in zip(variables, updated, strict=True):
            variable.value = new.astype(variable.value.dtype)
        return key.astype(dtype), value.astype(dtype), index

    @nn.nowrap
    def _check_single_token(self, key: Array, cached: Array) -> None:
        stored = self._from_stored(cached)
        expected = (*stored.shape[:-3], 1, *stored.shape[-2:])
        if key.shape != expected:
            raise ValueError(
                f"a decode step got keys of shape {key.shape}; expected {expected}, one token for every row of the "
                "cache. Pass one token per call, or start a new cache."
            )

    @nn.nowrap
    def update_cache_prefill(self, key, value, cached_key, cached_value, cache_index, prefill_lengths):
        """Fills the cache with a prompt; see `append_counted`. The variables come as Linen variables.

        Returns:
          `(key, value, cur_index, new_cached_key, new_cached_value, new_cache_index)`.
        """
        if key.shape[-3] != cached_key.value.shape[-1]:
            raise ValueError(
                f"prefill got {key.shape[-3]} tokens; expected {cached_key.value.shape[-1]}, the length of the cache. "
                "Pad the prompt to the decode length."
            )
        real = (offsets(key.shape[-3]) < prefill_lengths[:, None])[..., None, None]  # [B T 1 1]
        cache_index.value = prefill_lengths.astype(jnp.int32)
        new_key = self._to_stored(jnp.where(real, key, 0))
        new_value = self._to_stored(jnp.where(real, value, 0))
        return key, value, cache_index.value, new_key, new_value, cache_index.value

    @nn.nowrap
    def update_cache_decode(self, key, value, cached_key, cached_value, cache_index):
        """Stores one token per row at `cache_index`; rows past the end keep their cache.

        Returns:
          As `update_cache_prefill`, with the key and value of the whole cache.
        """
        index = cache_index.value.reshape(-1)  # [1] or [B]
        here = offsets(cached_key.value.shape[-1]) == index[:, None]  # [#B S]
        new_key = _place(cached_key.value, self._to_stored(key), here)
        new_value = _place(cached_value.value, self._to_stored(value), here)
        return (
            self._from_stored(new_key),
            self._from_stored(new_value),
            index,
            new_key,
            new_value,
            cache_index.value + 1,
        )


def place_counted(index: Array | None, query_length: int, key_length: int) -> Place:
    """The place of a call under T5X's protocol; `index` is that of the decoded token, None for a plain forward."""
    if index is None:
        return Place(offsets(query_length), offsets(key_length), counted=True)
    keys = offsets(key_length)
    return Place(index[:, None], keys, keys <= index[:, None])


def bias_row(bias: Array, index: Array) -> Array:
    """Row `index [#B]` of a full bias `[#B N S S]` -> `[#B N 1 S]`; rows past the end are zero."""
    if bias.shape[0] == 1:
        rows = jnp.moveaxis(bias[0].at[:, index].get(mode="fill", fill_value=0), 1, 0)  # [#B N S]
        return rows[:, :, None]
    index = jnp.broadcast_to(index, bias.shape[:1])
    return jax.vmap(lambda b, i: b.at[:, i].get(mode="fill", fill_value=0))(bias, index)[:, :, None]


def _place(cached: Array, update: Array, here: Array) -> Array:
    """`cached [B... X S]` with `update [B... X 1]` in the columns where `here [#B S]` is True."""
    extra = cached.ndim - 2
    here = here.reshape(here.shape[0], *(1,) * extra, here.shape[1]) if here.shape[0] > 1 else here[0]
    return jnp.where(here, update, cached)


def _count(mask: Mask | None, length: int) -> Int[Array, " B"]:
    if mask is None:
        raise WrongTypeError(
            "prefill got neither prefill_lengths nor a mask to count the prompt's tokens; expected one."
        )
    return jnp.sum(mask.dense(length, length)[:, 0, 0], axis=-1, dtype=jnp.int32)
