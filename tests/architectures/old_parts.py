"""Parts as users of google/flaxformer wrote them, against its calling convention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.components import embedding
from flaxformer.components.relative_position_biases import RelativeAttentionAPI


class OldNorm(nn.Module):
    """Divides by the mean absolute value."""

    @nn.compact
    def __call__(self, x, decode: bool = False, prefill: bool = False, prefill_lengths=None):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return scale * x / (jnp.mean(jnp.abs(x), -1, keepdims=True) + 1e-6)


class OldMlp(nn.Module):
    """A dense layer of this token and the one before it, which it remembers while decoding."""

    @nn.compact
    def __call__(self, x, decode: bool = False, prefill: bool = False, prefill_lengths=None, *, enable_dropout=True):
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        if decode or prefill:
            known = self.has_variable("cache", "last")
            last = self.variable("cache", "last", jnp.zeros, (x.shape[0], 1, x.shape[2]), x.dtype)
            if decode and known:
                before, last.value = last.value, x
            if prefill:
                rows = prefill_lengths[:, None, None]
                kept = jnp.take_along_axis(x, jnp.maximum(rows - 1, 0), axis=1)
                last.value = jnp.where(rows > 0, kept, 0)
        x = nn.Dropout(0.5, deterministic=not enable_dropout)(jnp.concatenate([x, before], -1))
        return nn.Dense(before.shape[-1])(x)


class OldAttention(nn.Module):
    """One head with a cache under T5X's protocol: created by the first decode call, then filled or appended to."""

    @nn.compact
    def __call__(
        self, inputs_q, inputs_kv, mask=None, bias=None, *, precomputed_qkv=None, decode: bool = False,
        enable_dropout: bool = True, prefill: bool = False, prefill_lengths=None,
    ):  # fmt: skip
        assert mask is None or isinstance(mask, jax.Array)
        width = inputs_q.shape[-1]
        query, key, value = (
            nn.Dense(width, name=n)(x) for n, x in zip("qkv", (inputs_q, inputs_kv, inputs_kv), strict=True)
        )
        if decode or prefill:
            known = self.has_variable("cache", "cached_key")
            cached = [
                self.variable("cache", f"cached_{n}", jnp.zeros_like, x)
                for n, x in zip(("key", "value"), (key, value), strict=True)
            ]
            index = self.variable("cache", "cache_index", jnp.zeros, (key.shape[0],), jnp.int32)
            if known and prefill:
                real = (jnp.arange(key.shape[1]) < prefill_lengths[:, None])[..., None]
                cached[0].value, cached[1].value = key * real, value * real
                index.value = prefill_lengths
            if known and decode:
                here = jax.nn.one_hot(index.value, cached[0].value.shape[1])[..., None]
                key, value = (c.value + here * x for c, x in zip(cached, (key, value), strict=True))
                cached[0].value, cached[1].value = key, value
                mask = (jnp.arange(key.shape[1]) <= index.value[:, None])[:, None, None]
                if bias is not None:
                    bias = jax.vmap(lambda i: bias[0, :, i])(index.value)[:, :, None]
                index.value = index.value + 1
        scores = jnp.einsum("btd,bsd->bts", query, key)[:, None]
        scores = scores if bias is None else scores + bias
        scores = scores if mask is None else jnp.where(mask > 0, scores, -1e10)
        return nn.Dense(width, name="out")(jnp.einsum("bts,bsd->btd", nn.softmax(scores)[:, 0], value))


class OldTable(nn.Module, embedding.Embedder[jax.Array]):
    """Token embeddings."""

    @nn.compact
    def __call__(self, inputs, *, segment_ids=None, decode: bool = False, enable_dropout: bool = True):
        return nn.Embed(17, 16, name="rows")(inputs)


class OldPositions(nn.Module, embedding.EmbedderWithDecode[jax.Array]):
    """Position embeddings that count tokens while decoding."""

    @nn.compact
    def __call__(self, inputs, *, segment_ids=None, decode: bool = False, enable_dropout: bool = True):
        rows = nn.Embed(8, 16, name="rows")
        if not decode:
            return rows(inputs)
        known = self.has_variable("cache", "position_embedder_index")
        index = self.variable("cache", "position_embedder_index", jnp.zeros, (1,), jnp.int32)
        found = rows(index.value)[:, None]
        if known:
            index.value = index.value + 1
        return found


class OldBias(nn.Module, RelativeAttentionAPI):
    """Minus a learned slope times the distance."""

    @nn.compact
    def __call__(self, qlen, klen, bidirectional: bool = True, decode: bool = False):
        slope = self.param("slope", nn.initializers.constant(0.3), ())
        return -slope * jnp.abs(jnp.arange(qlen)[:, None] - jnp.arange(klen))[None, None].astype(jnp.float32)
