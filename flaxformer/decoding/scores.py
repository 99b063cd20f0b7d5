"""What a sequence is worth: brevity penalty and the log-probability of given targets."""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import log_prob_of
from flaxformer.types import Array


def brevity_penalty(alpha: float | Float[Array, ""], length: int | Array) -> Float[Array, "..."]:
    """`((5 + length) / 6) ** alpha`: dividing a log-probability by it makes up for length.

    >>> float(brevity_penalty(0.6, 1))
    1.0

    Source: Wu et al., "Google's Neural Machine Translation System" (2016), equation 14.
    """
    return jnp.power((5.0 + jnp.asarray(length, jnp.float32)) / 6.0, alpha)


def target_log_probs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Array | Bool[Array, "B T"] | None = None
) -> Float[Array, "B T"]:
    """The log-probability of every target token, times `weights` where given; sum over T for a sequence's score."""
    log_probs = log_prob_of(logits.astype(jnp.float32), targets)
    return log_probs if weights is None else log_probs * weights
