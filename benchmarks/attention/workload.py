"""What is computed: shapes, who sees whom, what is added to the logits, and how many operations that takes.

Operations are counted by a formula: four for each pair of a query and a key it may see, per head and element of a head
(two products, a multiplication and an addition each), so that causal attention counts half of full attention; forward
and backward together count 3.5 times that (five more products, of which one computes the scores again), as papers on
FlashAttention count. What a program does beyond that, on hidden pairs for example, earns nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases

PROGRAMS = ("forward", "backward", "decode")
MASKS = ("none", "causal", "window:SIZE", "segments:COUNT")
BIASES = ("none", "t5", "alibi", "array")
BUCKETS = 32
BACKWARD = 3.5

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One computation of attention.

    Attributes:
      program: `forward`; `backward`, which is the output and the gradients of query, key, value and what the bias
        learns; or `decode`, one more query to `length` cached keys.
      length: keys, and queries unless decoding.
      batch: rows.
      heads: N, of the queries.
      kv_heads: K, of keys and values; None = N.
      head_dim: H.
      dtype: of query, key and value.
      mask: `none`; `causal`; `window:SIZE`, causal, a query sees itself and SIZE - 1 keys before; `segments:COUNT`,
        causal, packed sequences of uneven lengths, known only when the program runs.
      bias: `none`; `t5`, a learned table of 32 buckets; `alibi`, whose slopes are given; `array`, a learned `[N T S]`.
    """

    program: str = "forward"
    length: int = 1024
    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None
    head_dim: int = 64
    dtype: str = "float32"
    mask: str = "causal"
    bias: str = "none"

    def __post_init__(self) -> None:
        for name, known in (("program", PROGRAMS), ("bias", BIASES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        if min(self.length, self.batch, self.heads, self.key_heads, self.head_dim) < 1:
            raise ValueError(f"sizes are {self}; expected at least 1 of each.")
        if self.heads % self.key_heads:
            raise ValueError(f"heads is {self.heads} and kv_heads {self.kv_heads}; expected a multiple of kv_heads.")
        self._mask_size()

    @property
    def key_heads(self) -> int:
        """K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def queries(self) -> int:
        """T."""
        return 1 if self.program == "decode" else self.length

    @property
    def name(self) -> str:
        """Program, length, and what else differs from the defaults.

        >>> Workload("backward", 8192, bias="t5").name
        'backward-8192-bias=t5'
        """
        rest = [field for field in dataclasses.fields(self) if field.name not in ("program", "length")]
        others = [f"{f.name}={getattr(self, f.name)}" for f in rest if getattr(self, f.name) != f.default]
        return "-".join([self.program, str(self.length), *others])

    def flops(self) -> int:
        """Floating-point operations, by the formula above."""
        pairs = int(self.visible().sum()) * self.batch
        return round(4 * self.heads * self.head_dim * pairs * (BACKWARD if self.program == "backward" else 1))

    def visible(self) -> np.ndarray:
        """How many keys each query sees, `[T]`."""
        kind, size = self._mask_size()
        at = np.arange(self.length)
        first = {
            "none": lambda: 0 * at,
            "causal": lambda: 0 * at,
            "window": lambda: np.maximum(0, at + 1 - size),
            "segments": lambda: np.maximum.accumulate(
                np.where(np.diff(_segments(self.length, size), prepend=-1), at, 0)
            ),
        }[kind]()
        last = np.full_like(at, self.length - 1) if kind == "none" else at
        return (last - first + 1)[-self.queries :]

    def arrays(self, seed: int = 0) -> Arrays:
        """Random `query` and `cotangent` `[B T N H]`, `key` and `value` `[B S K H]`, and what mask and bias hold.

        All are float32 (segments int32), of values that `dtype` can hold; for layers there are `tokens [B S N*H]`.
        """
        random = np.random.default_rng(seed)
        query, key = (self.batch, self.queries, self.heads), (self.batch, self.length, self.key_heads)
        shapes = {"query": query, "key": key, "value": key, "cotangent": query}
        found = {"tokens": self._rounded(random, (self.batch, self.length, self.heads * self.head_dim))}
        found |= {name: self._rounded(random, (*shape, self.head_dim)) for name, shape in shapes.items()}
        if self.bias == "t5":
            found["bias"] = random.standard_normal((self.heads, BUCKETS), np.float32)
        elif self.bias == "alibi":
            found["bias"] = (2.0 ** (-8.0 * np.arange(1, self.heads + 1) / self.heads)).astype(np.float32)
        elif self.bias == "array":
            found["bias"] = self._rounded(random, (1, self.heads, self.queries, self.length))
        kind, size = self._mask_size()
        if kind == "segments":
            found["segments"] = _segments(self.length, size)[None]
        return found

    def make_mask(self, arrays: Arrays) -> masks.Mask | None:
        """The symbolic mask; None where all is seen, as by the one query of a causal decode step."""
        kind, size = self._mask_size()
        if kind == "none" or (kind == "causal" and self.program == "decode"):
            return None
        if kind == "segments":
            ids = jnp.asarray(arrays["segments"])
            return (
                masks.Causal() & masks.Segments(ids, ids)
                if self.program != "decode"
                else masks.Segments(ids[:, -1:], ids)
            )
        mask = masks.Causal(left=size - 1) if kind == "window" else masks.Causal()
        return mask if self.program != "decode" else mask.at(self._last(), None)

    def make_bias(self, arrays: Arrays) -> biases.Bias | None:
        """The bias, lazy unless it is an array."""
        if self.bias == "none":
            return None
        values = jnp.asarray(arrays["bias"])
        if self.bias == "array":
            return biases.ArrayBias(values)
        bias = (
            biases.TableBias(values, bidirectional=self.mask == "none")
            if self.bias == "t5"
            else biases.AlibiBias(values)
        )
        return bias if self.program != "decode" else bias.at(self._last(), jnp.arange(self.length)[None])

    @property
    def bias_learns(self) -> bool:
        """Whether the bias has a gradient."""
        return self.bias in ("t5", "array")

    def _last(self) -> Any:
        return jnp.array([[self.length - 1]])

    def _rounded(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(jnp.asarray(random.standard_normal(shape, np.float32), self.dtype).astype(jnp.float32))

    def _mask_size(self) -> tuple[str, int]:
        kind, colon, size = self.mask.partition(":")
        if (kind in ("none", "causal") and not colon) or (
            kind in ("window", "segments") and size.isdigit() and int(size)
        ):
            return kind, int(size or 0)
        raise ValueError(f"mask is {self.mask!r}; expected one of {', '.join(MASKS)}, for example window:512.")


def _segments(length: int, count: int) -> np.ndarray:
    """Ids `[S]` of packed sequences, of lengths drawn once for all."""
    cuts = np.random.default_rng(7).choice(np.arange(1, max(length, 2)), min(count, length) - 1, replace=False)
    return np.searchsorted(np.sort(cuts), np.arange(length), side="right").astype(np.int32)
