"""Initializers that `jax.nn.initializers` lacks. Each takes `(key, shape, dtype)`."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.types import Array, DType, Initializer, PRNGKey, Shape


def sinusoidal(
    min_scale: float = 1.0, max_scale: float = 10000.0, dtype: DType = jnp.float32, reach_last: bool = True
) -> Initializer:
    """The fixed table of sines and cosines that encodes absolute positions.

    Row t holds `sin(t·d_j)` in its first half and `cos(t·d_j)` in its second, with frequencies `d_j` falling
    geometrically from `min_scale` to `min_scale²/max_scale`. An odd last column stays zero.

    Args:
      min_scale: the frequency of the first column.
      max_scale: the longest timescale, in tokens per radian, for `min_scale=1`.
      dtype: float32.
      reach_last: whether the last column has the slowest frequency; else the fall stops one column short of it, as in
        section 3.5 of the paper.

    Returns:
      An initializer of shape `[L D]` that ignores its key.

    Raises:
      ValueError: for another dtype, or, when called, for a shape that is not `[L D]` with D of at least 4.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with all sines before all cosines.
    """
    if jnp.dtype(dtype) != jnp.float32:
        raise ValueError(f"sinusoidal got dtype {jnp.dtype(dtype)}; expected float32. Cast the table after the lookup.")

    def init(key: PRNGKey | None, shape: Shape, dtype: DType = dtype) -> Array:
        del key
        if jnp.dtype(dtype) != jnp.float32:
            raise ValueError(f"a sinusoidal table was asked for in {jnp.dtype(dtype)}; expected float32.")
        if len(shape) != 2 or shape[1] < 4:
            raise ValueError(
                f"a sinusoidal table was asked for in shape {tuple(shape)}; expected (length, features) with at least "
                "4 features."
            )
        length, features = shape
        half = features // 2
        steps = half - 1 if reach_last else half
        frequencies = min_scale * np.exp(np.arange(half) * -np.log(max_scale / min_scale) / steps)  # [half]
        angles = np.arange(length)[:, None] * frequencies  # [L half]
        table = np.zeros((length, features), np.float32)
        table[:, :half] = np.sin(angles)
        table[:, half : 2 * half] = np.cos(angles)
        return jnp.asarray(table)

    return init


def truncated_normal(mean: float = 0.0, stddev: float = 0.05, dtype: DType = jnp.float32) -> Initializer:
    """A normal distribution cut off at two standard deviations.

    Args:
      mean: of the distribution.
      stddev: of the normal before it is cut; what remains has 0.88 of it, and no correction is made.
      dtype: used where the caller names none.
    """

    def init(key: PRNGKey, shape: Shape, dtype: DType = dtype) -> Array:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.dtype(dtype)) * stddev + mean

    return init
