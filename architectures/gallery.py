"""What running a page of the gallery does: it prints the sizes, and takes one training step with the tiny one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
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


def losses(page: Page) -> tuple[float, float]:
    """The tiny model's loss before and after one training step."""
    inputs, options = page.example(page.sizes["tiny"])
    model = page.build(page.sizes["tiny"])
    init = jax.jit(lambda key: model.init(key, *inputs, **options, enable_dropout=False)["params"])
    params = init(jax.random.key(0))
    optimizer = optax.adam(1e-2)

    @jax.jit
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
