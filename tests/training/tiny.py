"""Models and batches small enough to train within a test."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

VOCABULARY = 11


class EncoderDecoder(nn.Module):
    """An embedding, the mean of the encoder's tokens, and a projection; called like the real models."""

    width: int = 8
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(
        self,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        encoder_positions=None,
        decoder_positions=None,
        *,
        enable_dropout: bool = True,
    ):
        embed = nn.Embed(VOCABULARY, self.width)
        encoded = jnp.mean(embed(encoder_input_tokens), axis=1, keepdims=True)
        x = embed(decoder_input_tokens) + nn.Dense(self.width)(encoded)
        x = nn.Dropout(self.dropout_rate, deterministic=not enable_dropout)(x)
        return nn.Dense(VOCABULARY)(nn.relu(nn.Dense(self.width)(x)))


class Tables(nn.Module):
    """Logits looked up by the encoder's first token and the decoder's last: compiles in no time."""

    rows: int = VOCABULARY
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(
        self, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, *, enable_dropout: bool = True
    ):
        x = nn.Embed(self.rows, VOCABULARY, embedding_init=nn.initializers.zeros)(encoder_input_tokens[:, :1])
        x += nn.Embed(self.rows, VOCABULARY, embedding_init=nn.initializers.zeros)(decoder_input_tokens)
        return nn.Dropout(self.dropout_rate, deterministic=not enable_dropout)(x)


class DecoderOnly(nn.Module):
    """The same without an encoder."""

    @nn.compact
    def __call__(
        self,
        decoder_input_tokens,
        decoder_target_tokens,
        decoder_segment_ids=None,
        decoder_positions=None,
        decoder_causal_attention=None,
        *,
        enable_dropout: bool = True,
    ):
        x = nn.Embed(VOCABULARY, 8)(decoder_input_tokens)
        if decoder_causal_attention is not None:
            x += decoder_causal_attention[..., None]
        return nn.Dense(VOCABULARY)(x)


def batch(seed: int = 0, rows: int = 4, length: int = 6) -> dict[str, Any]:
    """A task that can be learnt: repeat the encoder's first token."""
    random = np.random.default_rng(seed)
    inputs = random.integers(2, VOCABULARY, size=(rows, length), dtype=np.int32)
    targets = np.repeat(inputs[:, :1], length, axis=1)
    targets[:, length - 2 :] = 0
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


class Source:
    """Endless batches; the one of a step depends on nothing but seed and step.

    Attributes:
      asked: the start steps asked for so far.
    """

    def __init__(self, seed: int = 0, lengths: tuple[int, ...] = (6,), steps: int = 10**9):
        self.seed, self.lengths, self.steps, self.asked = seed, lengths, steps, []

    def batches(self, start_step: int = 0):
        self.asked.append(start_step)
        for step in range(start_step, self.steps):
            yield batch(1000 * self.seed + step, length=self.lengths[step % len(self.lengths)])
