"""One call for attention, and the kernels that can answer it.

`attend` checks the request, asks the table `KERNELS` which kernels can serve it, and runs the fastest of them, or the
one asked for by name. Nothing is dropped silently: a kernel that lacks a feature is not chosen, and refuses with the
reason when it is named. `explain_attend` tells the choice and all reasons without computing anything.

>>> query = jnp.ones((1, 4, 2, 8))
>>> attend(query, query, query, mask=masks.Causal()).shape
(1, 4, 2, 8)
>>> print(explain_attend(query, query, query, softcap=30.0).rejections["blockwise"][0])
slower than reference below 65536 scores per head, here 16
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import (
    biases,
    cudnn,
    flash_t5,
    flash_tpu,
    pallas_gpu,
    request,
    splash,
    via_tokamax,
)
from flaxformer.components.attention.kernels.blockwise import attend_blockwise
from flaxformer.components.attention.kernels.reference import attend_reference
from flaxformer.types import Array, Precision, PRNGKey

FEATURES = {
    "causal mask": "keys after the query hidden",
    "window mask": "keys further away than some distance hidden",
    "segment mask": "packed examples apart",
    "key lengths": "the first keys of each row",
    "positions": "masks by distance at positions other than 0, 1, 2...",
    "other masks": "prefixes, flags, unions, arrays",
    "array bias": "a bias array",
    "T5 bias": "buckets and their table",
    "lazy bias": "ALiBi, functions of positions, sums, T5 buckets at any positions",
    "relative keys": "Shaw's, which need the queries",
    "bias gradient": "to the array, or to what is behind a lazy bias",
    "bias not built": "a lazy bias never exists as a square",
    "grouped heads": "fewer key than query heads, not repeated",
    "value width": "values of another width than keys",
    "softcap": "logits bent into a range",
    "sinks": "an extra learned logit per head",
    "dropout": "on attention weights",
    "residuals": "returns the log-sum-exp, with gradient",
    "precision": "of products, as asked",
    "backward": "gradients of queries, keys and values",
    "linear memory": "never holds the square of scores",
    "float64": "",
    "float32": "",
    "half precision": "bfloat16 and float16, products summed in float32",
}

PROPERTIES = {
    "bias gradient",
    "bias not built",
    "backward",
    "linear memory",
}  # of a kernel; no request tells it needs one
MASKS = {"causal mask", "window mask", "segment mask", "key lengths", "positions", "other masks"}
SIMPLE_MASKS = {"causal mask", "window mask", "segment mask", "key lengths"}
ALWAYS = {"backward", "linear memory", "half precision"}

# From how many scores on `blockwise` is chosen: per head, T x S, and in all, B x N x T x S. While all fit the cache of
# a CPU, `reference` is as fast forward, faster in training, and compiles in a third of the time. Milliseconds, least
# of 2 to 15 runs that took turns (2 CPU cores with AVX-512, float32, 8 heads of 64, causal; forward / forward +
# backward; the middle columns on a busy machine, "batch 4" with blocks of 128):
#   scores      2 Mi          8 Mi           8 Mi               134 Mi
#   length      512           1024           512, batch 4       4096
#   reference   2.5 /  7.7    91 / 114       56 / 105
#   blockwise   2.8 / 10.6    18 /  55       20 /  46            92 /  374
#   jax.nn      2.9 / 10.0                   57 / 199           436 / 2066
# Elsewhere it has not been measured, and is for what would not fit into memory.
BLOCKWISE_FROM = {"cpu": (256 * 256, 2**22)}
BLOCKWISE_FROM_ELSEWHERE = (2048 * 2048, 0)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One way to attend.

    Attributes:
      name: by which it is asked for.
      run: called like `attend`, without `implementation`.
      features: keys of `FEATURES`.
      platforms: where it runs; None = everywhere.
      refusals: further reasons against a request.
      head_sizes: in words, what `refusals` says about H.
      lengths: in words, what `refusals` says about T and S.
      missing: why the kernel cannot be used at all; None where it can.
      by_name_only: "auto" leaves it, as its speed has not been measured.
    """

    name: str
    run: Callable[..., Any]
    features: frozenset[str]
    platforms: tuple[str, ...] | None = None
    refusals: Callable[[request.Request], list[str]] = lambda asked: []
    head_sizes: str = "any"
    lengths: str = "any"
    missing: Callable[[], str | None] = lambda: None
    by_name_only: bool = False

    def reasons_against(self, asked: request.Request, residuals: bool, platform: str) -> list[str]:
        """Why this kernel cannot serve a request; empty if it can. What the caller could change comes first."""
        lacking = [f"{name} is not supported" for name in needs(asked, residuals) if name not in self.features]
        reasons = self.refusals(asked) + lacking
        if self.platforms is not None and platform not in self.platforms:
            reasons.append(f"runs on {', '.join(self.platforms)}, not on {platform}")
        absent = self.missing()
        return [*reasons, absent] if absent else reasons


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", attend_reference, frozenset(FEATURES) - {"linear memory", "bias not built"}),
        Kernel("blockwise", attend_blockwise, frozenset(FEATURES)),
        Kernel(
            "cudnn",
            cudnn.attend_cudnn,
            frozenset(ALWAYS | MASKS | {"array bias", "bias gradient", "grouped heads"}),
            platforms=("gpu",),
            refusals=cudnn.refusals,
            head_sizes="multiples of 8 up to 128",
            lengths="even with a bias or mask array",
        ),
        Kernel(
            "flash_t5",
            flash_t5.attend_flash_t5,
            frozenset(
                ALWAYS
                | SIMPLE_MASKS
                | {"T5 bias", "bias gradient", "bias not built", "grouped heads", "residuals", "precision", "float32"}
            ),
            platforms=("gpu",),
            refusals=flash_t5.refusals,
            head_sizes="16, 32, 64, 128",
            lengths="not 0",
            by_name_only=True,
        ),
        Kernel(
            "pallas_gpu",
            pallas_gpu.attend_pallas_gpu,
            frozenset(ALWAYS | {"causal mask", "segment mask"}),
            platforms=("gpu",),
            refusals=pallas_gpu.refusals,
            head_sizes="16 to 128",
            lengths="T = S, a multiple of 128",
            by_name_only=True,
        ),
        Kernel(
            "flash_tpu",
            flash_tpu.attend_flash_tpu,
            frozenset(
                ALWAYS | {"causal mask", "segment mask", "key lengths", "array bias", "bias gradient", "float32"}
            ),
            platforms=("tpu",),
            refusals=flash_tpu.refusals,
            head_sizes="up to 128, or multiples of it",
            lengths="multiples of 128",
            by_name_only=True,
        ),
        Kernel(
            "splash",
            splash.attend_splash,
            frozenset(ALWAYS | SIMPLE_MASKS | {"grouped heads", "value width", "softcap", "sinks", "float32"}),
            platforms=("tpu",),
            refusals=splash.refusals,
            lengths="multiples of 128",
            by_name_only=True,
        ),
        Kernel(
            "tokamax",
            via_tokamax.attend_tokamax,
            frozenset(
                ALWAYS
                | MASKS
                | {"array bias", "bias gradient", "grouped heads", "value width", "softcap", "precision", "float32"}
            ),
            platforms=("gpu", "tpu"),
            refusals=via_tokamax.refusals,
            head_sizes="as its kernels take",
            lengths="not 0; T = S with a window",
            missing=via_tokamax.missing,
            by_name_only=True,
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
      mask: who may see whom: symbolic, or bool `[#B #N #T #S]` or `[#T #S]`, True = may see. Hidden keys and values are
        weighed with 0, and so must be finite.
      bias: added to the logits: lazy, or floating point that broadcasts to `[B N T S]`. Its arrays get gradients.
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
        quiet = implementation == "auto" and KERNELS[name].by_name_only
        rejections[name] = ["has not been measured; ask for it by name" if quiet else why_not]
    return Decision(choice, {name: reasons for name, reasons in rejections.items() if name != choice})


def _fastest(able: list[str], asked: request.Request, platform: str) -> tuple[str, str]:
    """The kernel to run, and why the others are left."""
    if "cudnn" in able:
        return "cudnn", "slower than cudnn"
    batch, length, heads, _ = asked.query.shape
    scores = length * asked.key.shape[1]
    found = {"scores per head": scores, "scores in all": batch * heads * scores}
    enough = dict(zip(found, BLOCKWISE_FROM.get(platform, BLOCKWISE_FROM_ELSEWHERE), strict=True))
    for what, count in found.items():
        if count < enough[what]:
            return "reference", f"slower than reference below {enough[what]} {what}, here {count}"
    limits = " and ".join(f"{enough[what]} {what}" for what in found)
    return "blockwise", f"slower than blockwise from {limits} on"


def needs(asked: request.Request, residuals: bool = False) -> list[str]:
    """The features that a request needs, in the order of `FEATURES`."""
    dtypes = [x.dtype for x in (asked.query, asked.key, asked.value)]
    needed = {
        **_mask_needs(asked.mask),
        **_bias_needs(asked.bias),
        "grouped heads": asked.query.shape[2] != asked.key.shape[2],
        "value width": asked.key.shape[3] != asked.value.shape[3],
        "softcap": asked.softcap is not None,
        "sinks": asked.sinks is not None,
        "dropout": asked.dropout_rate > 0,
        "residuals": residuals,
        "precision": asked.precision is not None,
        "float64": jnp.float64 in dtypes,
        "float32": jnp.float32 in dtypes,
        "half precision": any(jnp.finfo(dtype).bits == 16 for dtype in dtypes),
    }
    return [name for name in FEATURES if needed.get(name)]


def _mask_needs(mask: masks.Mask | None) -> dict[str, bool]:
    """What a conjunction of masks asks for."""
    parts = mask.parts if isinstance(mask, masks.And) else () if mask is None else (mask,)
    windows = [part for part in parts if isinstance(part, masks.Window)]
    named = (masks.Window, masks.Segments, masks.KeyLengths)
    return {
        "causal mask": any(part.right == 0 for part in windows),
        "window mask": any(part.left is not None or part.right not in (None, 0) for part in windows),
        "segment mask": any(isinstance(part, masks.Segments) for part in parts),
        "key lengths": any(isinstance(part, masks.KeyLengths) for part in parts),
        "positions": any(part.query_positions is not None or part.key_positions is not None for part in windows),
        "other masks": not all(isinstance(part, named) for part in parts),
    }


def _bias_needs(bias: biases.Bias | None) -> dict[str, bool]:
    """What a bias asks for; "T5 bias" is one that stands alone and at positions 0, 1, 2..."""
    if bias is None:
        return {}
    if bias.needs_query:
        return {"relative keys": True}
    t5 = isinstance(bias, biases.TableBias) and not bias.bound
    array = isinstance(bias, biases.ArrayBias)
    return {"array bias": array, "T5 bias": t5, "lazy bias": not array and not t5}


def support_table() -> str:
    """The table of kernels and features in Markdown, as the documentation shows it."""
    rows = [["feature", *KERNELS], ["---", *("---" for _ in KERNELS)]]
    for name, meaning in FEATURES.items():
        label = f"{name}: {meaning}" if meaning else name
        rows.append([label, *("yes" if name in kernel.features else "" for kernel in KERNELS.values())])
    rows.append(["head sizes", *(kernel.head_sizes for kernel in KERNELS.values())])
    rows.append(["lengths", *(kernel.lengths for kernel in KERNELS.values())])
    rows.append(["platforms", *(", ".join(kernel.platforms or ("all",)) for kernel in KERNELS.values())])
    rows.append(["chosen by auto", *("" if kernel.by_name_only else "yes" for kernel in KERNELS.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
