"""What becomes of queries that may see no key."""

import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.types import Array


def attend_evenly_when_blind(
    output: Float[Array, "B T N V"], log_sum_exp: Float[Array, "B N T"], value: Float[Array, "B S K V"]
) -> Float[Array, "B T N V"]:
    """The mean of all values in rows that see nothing, where kernels give zero.

    It is what additive masks do: a row in which every logit is moved by the same large number attends evenly. The
    published layers behave so.

    Args:
      output: a kernel's output.
      log_sum_exp: its residual, -inf in rows that see nothing.
      value: what was attended to.
    """
    mean = value.mean(axis=1, keepdims=True, dtype=log_sum_exp.dtype)  # [B 1 K V]
    mean = jnp.repeat(mean, output.shape[2] // value.shape[2], axis=2).astype(output.dtype)
    return jnp.where(jnp.isneginf(log_sum_exp).swapaxes(1, 2)[..., None], mean, output)
