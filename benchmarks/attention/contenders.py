"""Who computes: the kernels of `attend`, what other libraries offer, and variants that a gin file defines.

A contender makes two pytrees for a workload, what learns and what is given, and computes attention from the two.

* `Function`: called as `function(query, key, value, mask=..., bias=...)`, the mask symbolic or None, the bias lazy, an
  array, or None.
* `HeadsModule`: a Linen module called in the same way, with parameters of its own.
* `Layer`: a whole attention layer, called as `layer(inputs_q, inputs_kv, mask=...)`; its projections count as work.

PyTorch computes in a process of its own, see `benchmarks/peers/torch_sdpa.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.attention.workload import Arrays, Workload
from flaxformer.components.attention import backends, masks
from flaxformer.components.attention.cache import from_cache, to_cache
from flaxformer.components.attention.kernels import biases
from flaxformer.components.attention.scoring import takes_lazy_bias
from flaxformer.components.calling import accepts
from flaxformer.configs import Configuration
from flaxformer.step import Step
from flaxformer.types import Array

DEFINITION, ITSELF = "definition", "itself"  # what an error is taken against
TORCH = "torch"
MACROS = ("VARIANTS", "KERNELS")


class Contender(Protocol):
    """What the benchmark asks of a contender."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def exact(self) -> str | None:
        """What its error is taken against: the `DEFINITION` of attention, or `ITSELF` in float64; None = no error."""
        ...

    def inputs(self, workload: Workload, arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """What learns, and what is given: two pytrees."""
        ...

    def attend(self, workload: Workload, learned: Any, given: Any) -> Array:
        """The output, from the two."""
        ...

    def flops(self, workload: Workload, learned: Any) -> int:
        """Operations that the result needs."""
        ...


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of heads.

    Attributes:
      name: see `Contender`.
      function: `(query [B T N H], key, value [B S K H], *, mask, bias) -> [B T N H]`.
      exact: see `Contender`.
      lazy: a bias is given as it is, and not as an array.
      cached: decode reads keys and values as the library's caches hold them, `[B K H S]`.
    """

    name: str
    function: Callable[..., Array]
    exact: str | None = DEFINITION
    lazy: bool = True
    cached: bool = True

    def inputs(self, workload: Workload, arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """Heads and a learned bias; mask and a bias that does not learn."""
        learned: dict[str, Any] = {
            name: jnp.asarray(arrays[name], workload.dtype) for name in ("query", "key", "value")
        }
        if self._from_cache(workload):
            learned |= {name: to_cache(learned[name]) for name in ("key", "value")}
        given: dict[str, Any] = {"mask": workload.make_mask(arrays)}
        (learned if workload.bias_learns else given)["bias"] = workload.make_bias(arrays)
        return learned, given

    def attend(self, workload: Workload, learned: Mapping[str, Any], given: Mapping[str, Any]) -> Array:
        """`[B T N H]`."""
        heads = [learned[name] for name in ("query", "key", "value")]
        if self._from_cache(workload):
            heads[1:] = map(from_cache, heads[1:])
        return self._call(learned, *heads, mask=given["mask"], bias=self._bias(workload, learned, given))

    def flops(self, workload: Workload, learned: Mapping[str, Any]) -> int:
        """Those of the workload."""
        return workload.flops()

    def _bias(self, workload: Workload, learned: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        bias = learned.get("bias", given.get("bias"))
        return bias if self.lazy or bias is None else bias.dense(workload.queries, workload.length)

    def _from_cache(self, workload: Workload) -> bool:
        return self.cached and workload.program == "decode"

    def _call(self, learned: Mapping[str, Any], *heads: Array, **options: Any) -> Array:
        return self.function(*heads, **options)


@dataclasses.dataclass(frozen=True)
class HeadsModule(Function):
    """A Linen module over heads, such as those that layers take as `attention_fn`."""

    exact: str | None = ITSELF

    def inputs(self, workload: Workload, arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """As for a function, and the module's parameters."""
        learned, given = super().inputs(workload, arrays)
        heads = [jnp.asarray(arrays[name], workload.dtype) for name in ("query", "key", "value")]
        bias = self._bias(workload, learned, given)
        return learned | {"variables": _initialised(self.function, *heads, mask=given["mask"], bias=bias)}, given

    def _call(self, learned: Mapping[str, Any], *heads: Array, **options: Any) -> Array:
        return _apply(self.function, learned["variables"], *heads, **options)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A whole attention layer over `[B T D]`, D = N H of the workload. How many heads it has is its own affair.

    Attributes:
      name: see `Contender`.
      layer: the module.
      exact: see `Contender`.
    """

    name: str
    layer: Any
    exact: str | None = None

    def inputs(self, workload: Workload, arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs and parameters; mask, bias, and for decoding a filled cache and the next step."""
        tokens = jnp.asarray(arrays["tokens"], workload.dtype)
        bias = workload.make_bias(arrays)
        given: dict[str, Any] = {"mask": workload.make_mask(arrays), "bias": bias}
        if workload.program != "decode":
            variables = _initialised(self.layer, tokens, tokens, mask=given["mask"], **self._bias(workload, bias))
            return {"tokens": tokens, "variables": variables}, given
        if not accepts(self.layer, "step"):
            raise ValueError(f"{self.name} takes no step; expected a layer that decodes. Leave out the decode program.")
        prompt, variables = tokens[:, :-1], _initialised(self.layer, tokens, tokens, mask=masks.Causal())
        step = Step.start(jnp.ones((1, workload.length - 1), bool), workload.length)
        fill = functools.partial(_apply, self.layer, mask=masks.Causal(), step=step, mutable=["cache", "cross_cache"])
        _, cache = jax.jit(lambda variables, prompt: fill(variables, prompt, prompt))(variables, prompt)
        return {"tokens": tokens[:, -1:], "variables": variables}, {"cache": cache, "step": step.advance()}

    def attend(self, workload: Workload, learned: Mapping[str, Any], given: Mapping[str, Any]) -> Array:
        """`[B T D]`."""
        tokens, variables = learned["tokens"], learned["variables"]
        if workload.program != "decode":
            bias = self._bias(workload, given["bias"])
            return _apply(self.layer, variables, tokens, tokens, mask=given["mask"], **bias)
        options = {"mask": masks.Causal(), "step": given["step"], "mutable": ["cache"]}
        return _apply(self.layer, {**variables, **given["cache"]}, tokens, tokens, **options)[0]

    def flops(self, workload: Workload, learned: Mapping[str, Any]) -> int:
        """Those of the workload, and 2 per token and number in the projections, thrice with gradients."""
        numbers = sum(leaf.size for leaf in jax.tree.leaves(learned["variables"]) if getattr(leaf, "ndim", 0) > 1)
        passes = 3 if workload.program == "backward" else 1
        return workload.flops() + 2 * numbers * workload.batch * workload.queries * passes

    def _bias(self, workload: Workload, bias: biases.Bias | None) -> dict[str, Array]:
        return {} if bias is None else {"bias": bias.dense(workload.queries, workload.length)}


def kernel(name: str) -> Function:
    """`attend` with an implementation of its table, or `auto`."""
    return Function(name, functools.partial(backends.attend, implementation=name))


def attend_jax_nn(query: Array, key: Array, value: Array, *, mask: masks.Mask | None, bias: Any) -> Array:
    """`jax.nn.dot_product_attention` with its own words for causal masks and windows, and arrays for the rest."""
    lengths = query.shape[1], key.shape[1]
    options: dict[str, Any] = {}
    if isinstance(mask, masks.Causal) and mask.query_positions is None:
        window = None if mask.left is None else (mask.left, 0)
        options = {"is_causal": True, "local_window_size": window}
    elif mask is not None:
        options = {"mask": mask.dense(*lengths)}
    if bias is not None:
        options["bias"] = bias.dense(*lengths).astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, **options)


def attend_linen(query: Array, key: Array, value: Array, *, mask: masks.Mask | None, bias: Any) -> Array:
    """`flax.linen.dot_product_attention`, with mask and bias as arrays and grouped heads repeated."""
    lengths, groups = (query.shape[1], key.shape[1]), query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    bias = None if bias is None else bias.dense(*lengths).astype(query.dtype)
    return nn.dot_product_attention(query, key, value, bias, None if mask is None else mask.dense(*lengths))


PEERS = {
    "jax_nn": Function("jax_nn", attend_jax_nn, cached=False),
    "linen": Function("linen", attend_linen, cached=False),
}


def known() -> tuple[str, ...]:
    """The contenders that need no gin file."""
    return ("auto", *backends.KERNELS, *PEERS, TORCH)


def from_names(names: Sequence[str], variants: Mapping[str, Contender]) -> dict[str, Contender]:
    """The contenders of these names, but for `TORCH`.

    Raises:
      ValueError: for an unknown name.
    """
    table: dict[str, Contender] = {name: kernel(name) for name in ("auto", *backends.KERNELS)} | PEERS | dict(variants)
    if unknown := [name for name in names if name not in table and name != TORCH]:
        raise ValueError(
            f"contenders has {', '.join(map(repr, unknown))}; expected some of {', '.join([*table, TORCH])}. "
            "A gin file adds more, see docs/benchmarks.md."
        )
    return {name: table[name] for name in names if name in table}


def from_gin(configuration: Configuration) -> dict[str, Contender]:
    """What the macros of a gin file add.

    Args:
      configuration: defines `VARIANTS = {'NAME': ...}`, mathematics of their own, which are called as a layer calls its
        `attention_fn`; or `KERNELS`, in the same form, which are called as `attend` is, compute the same, and are
        compared with it in float64. A value is a function, or a module; among variants also a whole layer.

    Raises:
      ValueError: when it defines neither, for values that cannot attend, and for names that are taken.
    """
    if not any(macro in configuration for macro in MACROS):
        files = ", ".join(map(str, configuration.files))
        raise ValueError(f"{files} define neither {' nor '.join(MACROS)}; expected a dictionary of contenders by name.")
    found: dict[str, Contender] = {}
    for macro, exact in zip(MACROS, (ITSELF, DEFINITION), strict=True):
        for name, value in (configuration.build(macro) if macro in configuration else {}).items():
            if name in known():
                raise ValueError(
                    f"{macro} has {name!r}, which is taken; expected another name than {', '.join(known())}."
                )
            found[name] = _from_value(name, value, exact)
    return found


def _from_value(name: str, value: Any, exact: str) -> Any:
    lazy = exact == DEFINITION or takes_lazy_bias(value)
    if isinstance(value, nn.Module):
        return Layer(name, value) if accepts(value, "inputs_q") else HeadsModule(name, value, exact, lazy)
    if callable(value) and not isinstance(value, type):
        return Function(name, value, exact, lazy)
    raise ValueError(
        f"{name} is a {type(value).__name__}; expected a function @module.function, or a module @module.Class() with "
        "its parentheses."
    )


def _initialised(module: Any, *arguments: Any, **options: Any) -> Any:
    """The parameters of a module, without running more of it than they need. One array given twice stays one."""
    places = [next(i for i, other in enumerate(arguments) if other is each) for each in arguments]

    def make(*arguments: Any) -> Any:
        made = module.init(jax.random.key(0), *(arguments[i] for i in places), **_quiet(module), **options)
        return {"params": made.get("params", {})}

    return jax.jit(make)(*arguments)


def _apply(module: Any, variables: Any, *arguments: Any, **options: Any) -> Any:
    return module.apply(variables, *arguments, **_quiet(module), **options)


def _quiet(module: Any) -> dict[str, bool]:
    """What switches dropout off."""
    silent = {"enable_dropout": False, "deterministic": True}
    return {name: value for name, value in silent.items() if accepts(module, name)}
