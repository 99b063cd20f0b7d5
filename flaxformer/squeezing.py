"""Arrays without their leading axes of size 1, the form in which attention reads a cache.

Where a loop carries a cache of one row as `[1 K H S]` and writes it so, but attends to it as `[K H S]`, XLA on CPU
writes every step's keys and values twice, once into each form, and copies the cache four times to do so: a quarter of
the time in which T5 1.1 small writes 512 tokens for one row. Loops therefore carry, and caches write, the form that is
read; so also where there is one head of keys and values.
"""

from __future__ import annotations

from flaxformer.types import Array


def squeeze_leading(x: Array) -> Array:
    """`x` without axes of size 1 in front of its last two.

    >>> import numpy as np
    >>> squeeze_leading(np.ones((1, 6, 1, 1))).shape, squeeze_leading(np.ones((8, 1, 64, 16))).shape
    ((6, 1, 1), (8, 64, 16))
    """
    return x.reshape(*(size for size in x.shape[:-2] if size > 1), *x.shape[-2:])
