"""One call for attention, and the kernels that can answer it.

`attend` checks the request, asks the table `KERNELS` which kernels can serve it, and runs the fastest of them, or the
one asked for by name. Nothing is dropped silently: a kernel that lacks a feature is not chosen, and refuses with the
reason when it is named. `explain_attend` tells the choice and all reasons without computing anything.

>>> query = jnp.ones((1, 4, 2, 8))
>>> attend(query, query, query, mask=masks.Causal()).shape
(1, 4, 2, 8)
>>> print(explain_attend(query, query, query, softcap=30.0, implementation="auto"))
reference: chosen
blockwise: slower than reference below 65536 scores per head, here 16
cudnn: softcap is not supported; float32 is not supported; runs on gpu, not on cpu
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases, cudnn, request
from flaxformer.components.attention.kernels.blockwise import attend_blockwise
from flaxformer.components.attention.kernels.reference import attend_reference
from flaxformer.types import Array, Precision, PRNGKey

FEATURES = {
    "mask": "any symbolic mask, or an array",
    "array bias": "a bias array, with gradient",
    "lazy bias": "T5 table, ALiBi, function of positions, with gradients, never built as a square",
    "grouped heads": "fewer key than query heads, not repeated",
    "value width": "values of another width than keys",
    "softcap": "logits bent into a range",
    "sinks": "an extra learned logit per head",
    "dropout": "on attention weights",
    "residuals": "returns the log-sum-exp, with gradient",
    "linear memory": "never holds the square of scores",
    "float64": "",
    "float32": "",
    "half precision": "bfloat16 and float16, products summed in float32",
}

# From how many scores T x S per head on `blockwise` is chosen. On 2 CPU cores (AVX-512, float32, 8 heads of 64, causal;
# CPU milliseconds of both together, forward / forward + backward, on a busy machine), where `reference` also compiles
# in a third of the time:
#              128 x 128     256 x 256     512 x 512     512 x 512, batch 4
#   reference  0.44 / 1.12   1.27 / 4.96   6.7 / 21.0    48.0 / 113.9
#   blockwise  0.44 / 1.23   1.16 / 4.14   3.8 / 18.4    16.7 / 73.0
#   jax.nn     0.51 / 1.38   1.75 / 5.36   4.9 / 25.2    53.2 / 149.5
# Elsewhere it has not been measured, and is for what would not fit into memory.
BLOCKWISE_FROM = {"cpu": 256 * 256}
BLOCKWISE_FROM_ELSEWHERE = 2048 * 2048


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One way to attend.

    Attributes:
      name: by which it is asked for.
      run: called like `attend`, without `implementation`.
      features: keys of `FEATURES`.
      platforms: where it runs; None = everywhere.
      refusals: further reasons against a request.
    """

    name: str
    run: Callable[..., Any]
    features: frozenset[str]
    platforms: tuple[str, ...] | None = None
    refusals: Callable[[request.Request], list[str]] = lambda asked: []

    def reasons_against(self, asked: request.Request, residuals: bool, platform: str) -> list[str]:
        """Why this kernel cannot serve a request; empty if it can."""
        reasons = [f"{name} is not supported" for name in needs(asked, residuals) if name not in self.features]
        if self.platforms is not None and platform not in self.platforms:
            reasons.append(f"runs on {', '.join(self.platforms)}, not on {platform}")
        return reasons + self.refusals(asked)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", attend_reference, frozenset(FEATURES) - {"linear memory"}),
        Kernel("blockwise", attend_blockwise, frozenset(FEATURES)),
        Kernel(
            "cudnn",
            cudnn.attend_cudnn,
            frozenset({"mask", "array bias", "grouped heads", "linear memory", "half precision"}),
            platforms=("gpu",),
            refusals=cudnn.refusals,
        ),
    )
}


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKey | None = None,
    broadcast_dropout: bool = False,
    precision: Precision = None,
    implementation: str = "auto",
    return_residuals: bool = False,
) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """`softmax(scale * query · key + bias) · value` over the keys that the mask shows.

    Args:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K: query head n reads key head n // (N // K).
      value: `[B S K V]`.
      mask: who may see whom: symbolic, or bool `[#B #N #T #S]`, True = may see.
      bias: added to the logits: lazy, or floating point `[#B #N #T #S]`. Its arrays get gradients.
      scale: None means 1 / √H.
      softcap: bends the scaled products into (-softcap, softcap) by tanh, before the bias is added.
      sinks: `[N]`, one more logit per head, whose weight goes to nothing.
      dropout_rate: share of attention weights to drop; the others are scaled up.
      dropout_rng: random key for dropout. The same key drops the same weights in every kernel that has dropout.
      broadcast_dropout: drop the same keys for all queries.
      precision: of the products.
      implementation: a name in `KERNELS`, or "auto".
      return_residuals: return also the logarithm of the softmax's denominator, `[B N T]`.

    Returns:
      `[B T N V]` in the query's dtype. A row that may see nothing is zero, and so are its gradients; its log-sum-exp is
      -inf. `kernels.blind` makes such rows attend evenly instead.

    Raises:
      ValueError: for a request that makes no sense, or that the named implementation cannot serve.
    """
    options = {
        "mask": mask,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sinks": sinks,
        "dropout_rate": dropout_rate,
        "dropout_rng": dropout_rng,
        "broadcast_dropout": broadcast_dropout,
        "precision": precision,
    }
    decision = explain_attend(
        query, key, value, **options, implementation=implementation, return_residuals=return_residuals
    )
    if decision.choice is None:
        raise ValueError(f"{implementation}: {'; '.join(decision.rejections[implementation])}.")
    if return_residuals:
        options["return_residuals"] = True
    return KERNELS[decision.choice].run(query, key, value, **options)


@dataclasses.dataclass(frozen=True)
class Decision:
    """Which kernel serves a request.

    Attributes:
      choice: its name, None when the kernel asked for cannot serve.
      rejections: for every other kernel the reasons against it.
    """

    choice: str | None
    rejections: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [f"{self.choice}: chosen"] if self.choice else []
        return "\n".join(lines + [f"{name}: {'; '.join(reasons)}" for name, reasons in self.rejections.items()])


def explain_attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    implementation: str = "auto",
    return_residuals: bool = False,
    platform: str | None = None,
    **options: Any,
) -> Decision:
    """Which kernel `attend` would run, and why not another one.

    Args:
      query: arrays, or anything with a shape and a dtype; likewise `key` and `value`.
      implementation: as for `attend`.
      return_residuals: as for `attend`.
      platform: "cpu", "gpu" or "tpu"; None = the one JAX runs on.
      **options: as for `attend`.
    """
    if implementation != "auto" and implementation not in KERNELS:
        raise ValueError(f"implementation is {implementation!r}; expected 'auto' or one of {', '.join(KERNELS)}.")
    platform = platform or jax.default_backend()
    asked = request.check(query, key, value, **options)
    rejections = {name: kernel.reasons_against(asked, return_residuals, platform) for name, kernel in KERNELS.items()}
    able = [name for name, reasons in rejections.items() if not reasons]
    if implementation == "auto":
        choice, why_not = _fastest(able, asked, platform)
    else:
        choice, why_not = implementation if implementation in able else None, f"{implementation} was asked for"
    for name in able:
        rejections[name] = [why_not]
    return Decision(choice, {name: reasons for name, reasons in rejections.items() if name != choice})


def _fastest(able: list[str], asked: request.Request, platform: str) -> tuple[str, str]:
    """The kernel to run, and why the others are left."""
    if "cudnn" in able:
        return "cudnn", "slower than cudnn"
    scores, enough = asked.query.shape[1] * asked.key.shape[1], BLOCKWISE_FROM.get(platform, BLOCKWISE_FROM_ELSEWHERE)
    if scores < enough:
        return "reference", f"slower than reference below {enough} scores per head, here {scores}"
    return "blockwise", f"slower than blockwise from {enough} scores per head on, here {scores}"


def needs(asked: request.Request, residuals: bool = False) -> list[str]:
    """The features that a request needs, in the order of `FEATURES`."""
    dtypes = [x.dtype for x in (asked.query, asked.key, asked.value)]
    needed = {
        "mask": asked.mask is not None,
        "array bias": isinstance(asked.bias, biases.ArrayBias),
        "lazy bias": asked.bias is not None and not isinstance(asked.bias, biases.ArrayBias),
        "grouped heads": asked.query.shape[2] != asked.key.shape[2],
        "value width": asked.key.shape[3] != asked.value.shape[3],
        "softcap": asked.softcap is not None,
        "sinks": asked.sinks is not None,
        "dropout": asked.dropout_rate > 0,
        "residuals": residuals,
        "float64": jnp.float64 in dtypes,
        "float32": jnp.float32 in dtypes,
        "half precision": any(jnp.finfo(dtype).bits == 16 for dtype in dtypes),
    }
    return [name for name in FEATURES if needed.get(name)]


def support_table() -> str:
    """The table of kernels and features in Markdown, as the documentation shows it."""
    rows = [["feature", *KERNELS], ["---", *("---" for _ in KERNELS)]]
    for name, meaning in FEATURES.items():
        label = f"{name}: {meaning}" if meaning else name
        rows.append([label, *("yes" if name in kernel.features else "" for kernel in KERNELS.values())])
    rows.append(["platforms", *(", ".join(kernel.platforms or ("all",)) for kernel in KERNELS.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
