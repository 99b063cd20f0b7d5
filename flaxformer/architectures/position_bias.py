"""The bias that tells attention how far apart tokens are, from any kind of bias module."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from flaxformer.components.attention.kernels.biases import Bias, TableBias
from flaxformer.components.relative_position_biases import RelativeAttentionAPI, RelativePositionBiases
from flaxformer.components.rich_attention_position_scores import RichAttentionApi
from flaxformer.errors import PartError
from flaxformer.step import Step
from flaxformer.types import Array


def check_at_most_one(per_layer: Any, shared: Any, owner: str) -> None:
    """Refuses a bias per layer beside one shared by all layers."""
    if per_layer is not None and shared is not None:
        raise ValueError(
            f"{owner} got both relative_position_bias_factory and shared_relative_position_bias; "
            "expected at most one: a bias of its own, or the one its stack shares."
        )


def takes_lazy_bias(*parts: Any) -> bool:
    """Whether all of these layers or attention modules hand a lazy bias on to a kernel that never makes it a square."""
    return bool(parts) and all(getattr(part, "takes_lazy_bias", False) for part in parts)


def self_attention_bias(
    module: Any,
    x: Array,
    *,
    bidirectional: bool,
    step: Step,
    max_decode_length: int | None = None,
    lazy: bool = False,
) -> Array | Bias | None:
    """The bias of self-attention over `x [B T D]`.

    Args:
      module: a `RelativeAttentionAPI`, a `RichAttentionApi`, or None.
      x: the layer's input.
      bidirectional: whether keys may lie after queries.
      step: where the tokens stand.
      max_decode_length: under T5X's protocol, the length the cache was made for.
      lazy: whoever reads the bias takes a rule instead of an array, from modules that are one.

    Returns:
      `[#B N T S]`, or None without a module. In a T5X decode step, the full `[1 N L L]`. With `lazy`, a `TableBias` for
      `RelativePositionBiases`, except under T5X's protocol, whose bias is cached.

    Raises:
      PartError: when the module is neither kind.
    """
    if module is None:
        return None
    if isinstance(module, RichAttentionApi):
        extra = {} if bidirectional else {"is_cross_attention": False}
        return module(x, x, bidirectional=bidirectional, **extra)
    if not isinstance(module, RelativeAttentionAPI):
        raise PartError(
            f"the position bias is a {type(module).__name__}; expected a RelativeAttentionAPI or a RichAttentionApi. "
            "Derive it from one of the two."
        )
    if lazy and isinstance(module, RelativePositionBiases) and not (step.decode or step.prefill):
        return _rule(module, step, bidirectional)
    if step.use_cache:
        return _bias_at(module, step, bidirectional)
    length = max_decode_length or x.shape[-2]
    return module(length, length, bidirectional, decode=step.decode and not bidirectional)


def cross_attention_bias(module: Any, x: Array, encoded: Array | None) -> Array | None:
    """The bias of attention from `x` to `encoded`; only a `RichAttentionApi` has one."""
    if encoded is None or not isinstance(module, RichAttentionApi):
        return None
    return module(x, encoded, bidirectional=False, is_cross_attention=True)


def _rule(module: RelativePositionBiases, step: Step, bidirectional: bool) -> Bias:
    """The bias as a table and a rule; tokens stand at their row offsets unless a cache says otherwise."""
    bias = TableBias(jnp.asarray(module.rel_embedding, module.dtype), bidirectional, module.max_distance)
    if not step.use_cache:
        return bias
    slots = step.slots()
    return bias.at(slots.positions, slots.key_positions)


def _bias_at(module: RelativeAttentionAPI, step: Step, bidirectional: bool) -> Array:
    slots = step.slots()
    if isinstance(module, RelativePositionBiases):
        return module.bias(slots.positions, slots.key_positions, bidirectional)
    full = module(slots.cache_length, slots.cache_length, bidirectional, decode=False)[0]  # [N L L]
    rows, columns = slots.positions[:, :, None], slots.key_positions[:, None, :]
    return jnp.moveaxis(full[:, rows, columns], 0, 1)  # [#B N T S]
