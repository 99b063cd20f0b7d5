"""A one-layer language model that follows the `Step` contract in forty lines, to test decoding by itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class TinyAttention(nn.Module):
    """One attention head over everything before, with a cache of slots."""

    features: int

    @nn.compact
    def __call__(self, x, step):
        query, key, value = (nn.Dense(self.features, name=name)(x) for name in ("query", "key", "value"))
        if step is None:
            positions, k_positions = jnp.arange(x.shape[1])[None], jnp.arange(x.shape[1])[None]
            k_valid = jnp.ones_like(k_positions, bool)
        else:
            positions, k_positions, k_valid = step.positions, step.key_positions, step.key_valid
            if step.fresh:
                room = ((0, 0), (0, step.cache_length - x.shape[1]), (0, 0))
                self.put_variable("cache", "cached_key", jnp.pad(key, room))
                self.put_variable("cache", "cached_value", jnp.pad(value, room))
            else:
                key, value = (self._append(*pair, step) for pair in (("cached_key", key), ("cached_value", value)))
        seen = k_valid[:, None] & (k_positions[:, None] <= positions[..., None])
        weights = jax.nn.softmax(jnp.where(seen, jnp.einsum("btd,bsd->bts", query, key), -1e9))
        return jnp.einsum("bts,bsd->btd", weights, value)

    def _append(self, name, update, step):
        full = jax.lax.dynamic_update_slice_in_dim(self.get_variable("cache", name), update, step.slot, axis=1)
        self.put_variable("cache", name, full)
        return full


class TinyLanguageModel(nn.Module):
    """Decoder-only, with a table of positions."""

    vocabulary: int = 11
    features: int = 8
    table: int = 64

    @nn.compact
    def __call__(self, decoder_input_tokens, decoder_target_tokens=None, *, step=None, enable_dropout=True):
        positions = jnp.arange(decoder_input_tokens.shape[1])[None] if step is None else step.positions
        init = nn.initializers.normal(1.0)
        x = nn.Embed(self.vocabulary, self.features, embedding_init=init, name="tokens")(decoder_input_tokens)
        table = self.param("pos_embedding", init, (self.table, self.features))
        x = x + table[positions]
        x = x + TinyAttention(self.features)(x, step)
        self.sow("intermediates", "pre_logits_layer", x)
        return 2.0 * nn.Dense(self.vocabulary, name="logits")(x)


@functools.cache
def _compiled(model):
    length = jnp.zeros((1, 16), jnp.int32)
    return jax.jit(lambda key: {"params": model.init(key, length)["params"]}), jax.jit(model.apply)


@functools.cache
def tiny(seed=0, **fields):
    """The model and its variables."""
    model = TinyLanguageModel(**fields)
    return model, _compiled(model)[0](jax.random.PRNGKey(seed))


def teacher_forced_log_probs(model, variables, prompt, tokens, length, temperature=1.0):
    """Log-probabilities of `tokens[:length]` behind `prompt`, from one pass over the whole sequence."""
    sequence = np.concatenate([prompt, tokens[:length]]).astype(np.int32)
    padded = np.pad(sequence, (0, 16 - len(sequence)))[None]
    logits = np.asarray(_compiled(model)[1](variables, padded)[0], np.float64) / temperature
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    where = np.arange(len(prompt) - 1, len(sequence) - 1)
    return log_probs[where, sequence[len(prompt) :]]
