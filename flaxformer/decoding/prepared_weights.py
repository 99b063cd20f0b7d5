"""Weights laid, or rounded, once for many loops on CPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.components.int8_matrix import Int8Matrix
from flaxformer.decoding.layout import layout_of
from flaxformer.decoding.model_session import params_of
from flaxformer.decoding.weight_order import PREPARED, Order, path_name
from flaxformer.types import DType

NOT_IN_LOOPS = "encoder"
"""What no loop reads."""


def prepare_weights(model: Any, variables: Mapping[str, Any], dtype: DType = jnp.float32) -> dict[str, Any]:
    """`variables` for many calls of `generate` or `stream`: with a copy of the weights as loops on CPU read them fast.

    Without it every call of three rows or more makes that copy: for T5 1.1 small about 0.1 s of the 1.3 s that 64
    tokens of 4 beams take. The copy holds the decoder's float32 matrices. It belongs to these parameters; after they
    have changed it has to be made anew. On GPU and TPU there is nothing to prepare.

    With `dtype=jnp.int8` the copy, of matrices of any float type, has a quarter of float32's size, and loops of 3 to
    64 rows multiply integers: weights are rounded by output, what they are multiplied with by row (as in Yao et al.
    2022, "ZeroQuant", section 4.1, without groups). Results are then no longer those of float32. Encoders, prompts and
    loops of one or two rows read the parameters as they are.

        variables = prepare_weights(model, variables)
        for inputs in batches:
            generate(model, variables, inputs, strategy=BeamSearch(4), max_new_tokens=64, eos_id=1)

    Args:
      model: as `generate` takes it.
      variables: with the collection 'params'.
      dtype: of the copy, float32 or int8.

    Returns:
      The same variables, with the collection 'prepared_weights'.

    Raises:
      ValueError: for another dtype, for variables without 'params', and where there is nothing to prepare: loops read
        matrices of bfloat16 or float16 as they are.
    """
    kind = jnp.dtype(dtype)
    if kind not in (jnp.float32, jnp.int8):
        raise ValueError(f"dtype is {kind.name}; expected float32 or int8. Leave it out for the weights as they are.")
    if jax.default_backend() != "cpu":
        return dict(variables)
    params, stack = params_of(variables), layout_of(model, variables).scanned
    prepared = _prepared(params, Order("turned", stack), kind == jnp.int8)
    if not prepared:
        found = sorted({x.dtype.name for x in jax.tree.leaves(params)})
        raise ValueError(
            f"the parameters hold no matrix to prepare as {kind.name}, and arrays of {', '.join(found)}; expected a "
            "matrix `kernel` of float32, or for int8 of any float type. Leave prepare_weights out: loops read these "
            "parameters as they are."
        )
    return {**variables, PREPARED: prepared}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _prepared(params: Any, order: Order, rounded: bool) -> dict[str, Any]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if rounded and jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(jnp.float32)
        if order.concerns(path, leaf)[1] and path[0].key != NOT_IN_LOOPS:
            turned = order.lay(path, leaf)
            found[path_name(path)] = Int8Matrix.rounded(turned.mT).mT if rounded else turned
    return found
