"""Kernels of the table as they can be run without their device: interpreted, or with what they call replaced."""

import contextlib
import functools
import inspect
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu

from flaxformer.components.attention import backends


def tokamax_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
    logits_soft_cap=None,
    precision=None,
    implementation=None,
    q_sharding=None,
):
    """The signature and the meaning of `tokamax.dot_product_attention`, version 0.0.12, written down."""
    assert implementation and "xla" not in implementation
    keys, values = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    logits = scale * jnp.einsum("btnh,bsnh->bnts", query, keys, preferred_element_type=jnp.float32)
    logits += 0 if bias is None else bias.astype(jnp.float32)
    if logits_soft_cap is not None:  # after the bias
        logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
    rows, columns = jnp.arange(query.shape[1])[:, None], jnp.arange(key.shape[1])[None]
    seen = jnp.ones(logits.shape, bool) if mask is None else jnp.broadcast_to(mask, logits.shape)
    if is_causal:
        seen &= columns <= rows
    if local_window_size is not None:
        before, after = local_window_size
        seen &= (columns >= rows - before) & (columns <= rows + after)
    if key_value_seq_lengths is not None:
        seen &= columns < key_value_seq_lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnv->btnv", weights, values.astype(jnp.float32)).astype(query.dtype)


@contextlib.contextmanager
def runnable(name):
    """The kernel as a function that runs here."""
    run = backends.KERNELS[name].run
    with contextlib.ExitStack() as stack:
        if "interpret" in inspect.signature(run).parameters:
            run = functools.partial(run, interpret=True)
        if "block" in inspect.signature(run).parameters:
            run = functools.partial(run, block=16)
        if name == "cudnn":
            stack.enter_context(mock.patch("jax.nn.dot_product_attention", _through_xla(jax.nn.dot_product_attention)))
        if name == "flash_tpu":
            stack.enter_context(tpu.force_tpu_interpret_mode())
        if name == "tokamax":
            module = types.SimpleNamespace(dot_product_attention=tokamax_attention)
            stack.enter_context(mock.patch.dict(sys.modules, tokamax=module))
        yield run


def _through_xla(attend):
    """XLA in place of cuDNN: it shows what is asked of cuDNN, not how cuDNN computes. On CPU it knows no float16."""

    def stand_in(query, key, value, bias=None, **options):
        options["implementation"] = "xla"
        if query.dtype != jnp.float16:
            return attend(query, key, value, bias, **options)
        wide = [None if x is None else x.astype(jnp.float32) for x in (query, key, value, bias)]
        return attend(*wide, **options).astype(jnp.float16)

    return stand_in
