"""What running a page of the gallery does: it prints the sizes, and takes one training step with the tiny one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Page:
    """A family: its sizes, how a model of one is built, and a batch to show it on.

    Attributes:
      name: the folder of its gin twin.
      sizes: by name, the smallest first; "tiny" is the one that is run.
      build: from a size to the model.
      example: from a size to a batch, `(arguments, keywords)` of the model's call.
      loss: from the model's outputs for the tiny size's example to a number.
    """

    name: str
    sizes: Mapping[str, Any]
    build: Callable[[Any], nn.Module]
    example: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]
    loss: Callable[[Any], jax.Array]


def number_of_parameters(page: Page, size: str) -> int:
    """Counted by tracing: nothing is allocated."""
    inputs, options = page.example(page.sizes[size])
    model = page.build(page.sizes[size])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **options, enable_dropout=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def losses(page: Page, compiled: Callable[[Callable], Callable] = jax.jit) -> tuple[float, float]:
    """The tiny model's loss before and after one training step; `compiled` is given what there is to compile."""
    inputs, options = page.example(page.sizes["tiny"])
    model = page.build(page.sizes["tiny"])
    init = compiled(lambda key: model.init(key, *inputs, **options, enable_dropout=False)["params"])
    params = init(jax.random.key(0))
    optimizer = optax.adam(1e-2)

    @compiled
    def step(params, state, key):
        def loss(params):
            return page.loss(model.apply({"params": params}, *inputs, **options, rngs={"dropout": key}))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, before = step(params, optimizer.init(params), jax.random.key(2))
    return float(before), float(step(params, state, jax.random.key(3))[2])


def show(page: Page) -> None:
    for size in page.sizes:
        print(f"{size:8}{number_of_parameters(page, size):>18,} parameters")
    before, after = losses(page)
    print(f"loss of the tiny one: {before:.3f}, and after one training step: {after:.3f}")


def text(vocabulary: int, length: int = 6, seed: int = 0) -> jax.Array:
    """Two rows of tokens by chance, `[2 length]`; ids below 4 stand for padding, ends and the like and are left out."""
    return jnp.asarray(np.random.default_rng(seed).integers(4, vocabulary, (2, length)), jnp.int32)


def noise(*shape: int) -> jax.Array:
    """Numbers by chance, of mean 0 and variance 1, in the place of pixels and samples."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def cross_entropy(logits: jax.Array, targets: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Mean over the targets `[*B]`, or those of them that `where` names; `logits` are `[*B V]`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets), where=where)


def continuation(size: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example of a model that continues text."""
    tokens = text(size.vocabulary, 7)[:, :-1]  # [B T]
    return (tokens,), {"decoder_valid": jnp.ones_like(tokens)}


def loss_of_continuation(logits: jax.Array) -> jax.Array:
    """For `continuation`: how well each token's successor is predicted, from `[B T V]`."""
    return cross_entropy(logits, text(logits.shape[-1], 7)[:, 1:])
