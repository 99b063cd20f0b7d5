"""Array aliases and the axis alphabet, stated once.

One letter per axis, as in `jax.nn`:

| letter | axis                 | letter | axis                      |
|--------|----------------------|--------|---------------------------|
| B      | batch                | N      | query heads               |
| T      | query length         | K      | key/value heads, N = K·G  |
| S      | key length           | G      | query heads per key head  |
| D      | model width          | H      | width of one head         |
| F      | MLP width            | V      | vocabulary                |
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jnp.ndarray
DType = jax.typing.DTypeLike  # 'bfloat16', jnp.bfloat16 and jnp.dtype('bfloat16') alike
PRNGKey = jnp.ndarray
Shape = Sequence[int]
Activation = Callable[..., Array]
Initializer = Callable[[PRNGKey, Shape, DType], Array]
Precision = None | str | jax.lax.Precision | tuple[Any, Any]
