"""Batches by feature name, and how a model is called with them."""

from collections.abc import Mapping
from typing import Any

import chex
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from flaxformer.errors import ShapeError, shapes_refused
from flaxformer.types import Array

Batch = Mapping[str, Any]

_ENCODER_DECODER = (
    ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"),
    ("encoder_segment_ids", "decoder_segment_ids", "encoder_positions", "decoder_positions"),
)
_DECODER_ONLY = (
    ("decoder_input_tokens", "decoder_target_tokens"),
    ("decoder_segment_ids", "decoder_positions", "decoder_causal_attention"),
)


def module_inputs(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that a model takes from `batch`.

    A batch with `encoder_input_tokens` is one for an encoder-decoder, another for a decoder-only model. Segment ids,
    positions and `decoder_causal_attention` are passed where the batch has them.

    Raises:
      ValueError: when a feature that the model needs is missing, or features differ in shape.

    >>> module_inputs({"decoder_input_tokens": 1, "decoder_target_tokens": 2, "decoder_positions": 3})
    ((1, 2), {'decoder_positions': 3})
    """
    tokens, optional = _ENCODER_DECODER if "encoder_input_tokens" in batch else _DECODER_ONLY
    missing = [name for name in tokens if name not in batch]
    if missing:
        raise ValueError(
            f"the batch has the features {', '.join(sorted(batch)) or 'none'}; expected {', '.join(missing)} too. "
            "Convert examples with flaxformer.data, or add the features."
        )
    features = [name for name in (*tokens, *optional) if name in batch]
    _check_shapes({name: batch[name] for name in features})
    return tuple(batch[name] for name in tokens), {name: batch[name] for name in optional if name in batch}


def _check_shapes(features: Batch) -> None:
    for side in ("encoder", "decoder"):
        arrays = {name: x for name, x in features.items() if name.startswith(side) and hasattr(x, "shape")}
        if not arrays:
            continue
        with shapes_refused(f"The features {', '.join(arrays)} of a batch must all be [batch, length]."):
            chex.assert_rank(list(arrays.values()), 2)
            chex.assert_equal_shape(list(arrays.values()))
    rows = {x.shape[0] for x in features.values() if hasattr(x, "shape")}
    if len(rows) > 1:
        raise ShapeError(f"the features of the batch have {sorted(rows)} rows; expected one number for all of them.")


def forward(apply: Any, params: Any, batch: Batch, dropout_key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
    """Logits of `batch`, with dropout exactly when there is a key for it.

    Args:
      apply: a model's `apply`.
      params: its parameters.
      batch: see `module_inputs`.
      dropout_key: None for evaluation.
    """
    arguments, keywords = module_inputs(batch)
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return apply({"params": params}, *arguments, **keywords, enable_dropout=dropout_key is not None, rngs=rngs)


def count_tokens(batch: Batch) -> Int[Array, ""]:
    """Tokens of the encoder's inputs and the decoder's targets that are not padding."""
    counted = [batch[name] for name in ("encoder_input_tokens", "decoder_target_tokens") if name in batch]
    return sum((jnp.sum(tokens > 0) for tokens in counted), start=jnp.zeros((), jnp.int32))
