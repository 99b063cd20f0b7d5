"""Which tokens sampling may draw: masks on logits, True at what is kept.

Each mask keeps at least one token. None sorts the vocabulary: thresholds on floats are found bit by bit, for the
bits of non-negative floats are ordered as the floats are, and thirty passes over a row are several times faster than
sorting it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import top_k_mask, top_p_mask
from flaxformer.types import Array

Number = float | Float[Array, ""]

__all__ = ["epsilon_mask", "eta_mask", "min_p_mask", "top_k_mask", "top_p_mask", "typical_mask"]


def _probabilities(logits: Float[Array, "*R V"]) -> Float[Array, "*R V"]:
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def _entropy(logits: Float[Array, "*R V"]) -> tuple[Float[Array, "*R V"], Float[Array, "*R 1"]]:
    """Log-probabilities, and the entropy of each row in nats; what is banned (-inf) adds nothing."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    terms = jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0)
    return log_probs, -jnp.sum(terms, axis=-1, keepdims=True)


def _with_the_best(kept: Bool[Array, "*R V"], x: Float[Array, "*R V"]) -> Bool[Array, "*R V"]:
    return kept | (x >= jnp.max(x, axis=-1, keepdims=True))


def min_p_mask(logits: Float[Array, "*R V"], p: Number) -> Bool[Array, "*R V"]:
    """True at tokens at least `p` times as probable as the most probable one.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs" (2024).
    """
    x = logits.astype(jnp.float32)
    return _with_the_best(x - jnp.max(x, axis=-1, keepdims=True) >= jnp.log(jnp.asarray(p, jnp.float32)), x)


def epsilon_mask(logits: Float[Array, "*R V"], epsilon: Number) -> Bool[Array, "*R V"]:
    """True at tokens of probability at least `epsilon`, and at the most probable one.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing" (2022), section 4.
    """
    probabilities = _probabilities(logits)
    return _with_the_best(probabilities >= epsilon, probabilities)


def eta_mask(logits: Float[Array, "*R V"], epsilon: Number) -> Bool[Array, "*R V"]:
    """True at tokens of probability at least `min(ε, √ε · exp(-entropy))`, and at the most probable one.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing" (2022), section 4.
    """
    log_probs, entropy = _entropy(logits)
    epsilon = jnp.asarray(epsilon, jnp.float32)
    eta = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
    return _with_the_best(jnp.exp(log_probs) >= eta, log_probs)


def typical_mask(logits: Float[Array, "*R V"], mass: Number) -> Bool[Array, "*R V"]:
    """True at the smallest set of total `mass` whose information is nearest to the entropy; equals are kept together.

    The most typical token is kept always; the most probable one may go, unlike elsewhere.

    Source: Meister et al., "Locally Typical Sampling" (2022), section 4.
    """
    log_probs, entropy = _entropy(logits)
    probabilities = jnp.exp(log_probs)
    distance = jax.lax.bitcast_convert_type(jnp.abs(-log_probs - entropy), jnp.int32)

    def try_bit(index: Int[Array, ""], threshold: Int[Array, "*R 1"]) -> Int[Array, "*R 1"]:
        higher = threshold | (1 << (30 - index))
        nearer = jnp.sum(jnp.where(distance < higher, probabilities, 0.0), axis=-1, keepdims=True)
        return jnp.where(nearer < mass, higher, threshold)

    start = jnp.zeros((*logits.shape[:-1], 1), jnp.int32)
    farthest = jax.lax.fori_loop(0, 31, try_bit, start)  # the largest t for which what is nearer than t is too little
    return (distance <= farthest) & (probabilities > 0.0)
