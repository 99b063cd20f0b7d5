"""How a model is prefilled and stepped. Knows no strategy.

A model is an encoder-decoder if it has `encode` and `decode`, otherwise decoder-only. Both take a `Step`; the first
call of a batch makes the collections `cache` (one row per decoder row) and `cross_cache` (the encoder's keys and
values, one row per item, never tiled nor reordered), every later one updates `cache` only.

Several rows per item (beams, samples) are kept in one of two ways. Where every cache of the model can (see
`Cache.branches`), they may be *branches* of the item's one row: they share its prompt, write side by side, and
reordering them moves a table of who descends from whom. Otherwise the cache has a row for each, and rows are copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.components.attention.caches.store import BY_SLOT, observed
from flaxformer.decoding.cache_rows import Stacked, check_rows, count_rows, pick_rows, repeat_rows
from flaxformer.decoding.hidden_states import is_last, last_hidden
from flaxformer.decoding.layout import layout_of
from flaxformer.decoding.prompts import ENCODER_TOKENS, Prompts
from flaxformer.decoding.slots import rewound, widened
from flaxformer.decoding.weight_order import OUTSIDE, PREPARED, Order, order_weights, reading
from flaxformer.step import Step
from flaxformer.types import Array

_POSITION_TABLE = "pos_embedding"
_TOKEN_TABLE = "embedding"

WIDEST = 16
"""Up to how many rows of an item are kept as branches, each of which attends to the others' slots in vain."""


class Memory(flax.struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
      cache: the model's `cache` collection.
      step: the step to take next.
      hidden: `[R T D]`, the last hidden states of the tokens just read, where the session keeps them.
      stacked: where in the cache scanned layers are stacked in front of the rows (static).
      prompt: how many slots the prompt takes (static).
      branches: whether each of the cache's rows can branch (static).
      rewinds: whether tokens can be taken back (static).
      width: branches of each of the cache's rows (static).
    """

    cache: Any
    step: Step
    hidden: Float[Array, "R T D"] | None = None
    stacked: Stacked = flax.struct.field(pytree_node=False, default=None)
    prompt: int = flax.struct.field(pytree_node=False, default=0)
    branches: bool = flax.struct.field(pytree_node=False, default=False)
    rewinds: bool = flax.struct.field(pytree_node=False, default=True)
    width: int = flax.struct.field(pytree_node=False, default=1)


class Context(flax.struct.PyTreeNode):
    """What stays as it is while a batch is decoded.

    Attributes:
      variables: the model's variables, with `cross_cache` once there is one.
      encoded: `[B S D]`, or None without an encoder.
      encoder_input_tokens: `[B S]`, likewise.
      order: how the arrays of 'params' lie (static).
    """

    variables: Any
    encoded: Float[Array, "B S D"] | None = None
    encoder_input_tokens: Int[Array, "B S"] | None = None
    order: Order = flax.struct.field(pytree_node=False, default=OUTSIDE)


@dataclasses.dataclass(frozen=True)
class ModelSession:
    """A model, seen as something that turns tokens into the logits of the next token.

    Attributes:
      model: a Linen module that takes a `Step`.
      hidden: keep the last hidden states of the tokens just read.
    """

    model: nn.Module
    hidden: bool = False

    @property
    def copies(self) -> int:
        """Rows that the model reads for every row that is written."""
        return 1

    def seen(self, prompts: Prompts) -> Prompts:
        """Everything that is read before the first new token, for strategies and constraints that look at it."""
        return prompts

    @property
    def has_encoder(self) -> bool:
        return hasattr(self.model, "encode") and hasattr(self.model, "decode")

    def open(self, variables: Mapping[str, Any], inputs: Mapping[str, Array]) -> Context:
        """Encodes what there is to encode."""
        if not self.has_encoder:
            return Context(variables)
        tokens = inputs[ENCODER_TOKENS]
        encoded: Any = self.model.apply(variables, tokens, enable_dropout=False, method="encode")
        return Context(variables, encoded, tokens)

    def prefill(
        self, context: Context, prompts: Prompts, cache_length: int
    ) -> tuple[Float[Array, "B V"], Context, Memory]:
        """Reads the prompts into an empty cache of `cache_length` slots; returns the logits behind them.

        The last token of a longer prompt is read by a step of its own. Nobody then asks for the logits of the others,
        and XLA drops them: at 512 tokens and a vocabulary of 32128 they are 66 MB per item. A prefix that sees itself
        has to be read at once.
        """
        length = prompts.tokens.shape[1]
        at_once = prompts.prefix is not None or self.hidden or length == 1
        head = (
            prompts
            if at_once
            else dataclasses.replace(prompts, tokens=prompts.tokens[:, :-1], valid=prompts.valid[:, :-1])
        )
        logits, context, memory = self.read_prompt(context, head, cache_length)
        memory = memory.replace(step=memory.step.advance(), prompt=length)
        if at_once:
            return logits[:, -1], context, memory
        logits, memory = self.step(context, memory, prompts.tokens[:, -1])
        return logits, context, memory

    def read_prompt(
        self, context: Context, prompts: Prompts, cache_length: int
    ) -> tuple[Float[Array, "B P V"], Context, Memory]:
        """Reads the prompts into an empty cache; returns all logits, and a memory whose step is the one that did it."""
        step = Step.start(prompts.valid, cache_length)
        flags = {} if prompts.prefix is None else {"decoder_causal_attention": prompts.prefix}
        mutable = ["cache", "cross_cache"]
        with observed() as caches:
            logits, changed = self._call(context, {}, prompts.tokens, step, mutable, **flags)
        if "cross_cache" in changed:
            context = context.replace(variables={**context.variables, "cross_cache": changed["cross_cache"]})
        stacked = layout_of(self.model, context.variables).stacked
        rows, length = prompts.tokens.shape
        check_rows(changed["cache"], rows, stacked)
        branches, rewinds = (can(changed["cache"], caches) for can in (_can_branch, _can_rewind))
        memory = Memory(changed["cache"], step, self._hidden(changed), stacked, length, branches, rewinds)
        return logits, context, memory

    def unread(self, memory: Memory, prompts: Prompts, cache_length: int) -> Memory | None:
        """The memory before its prompts of one token each were read, so that the first step may read them.

        Nothing then asks for what `prefill` computed but the encoder's keys and values, XLA drops it, and the decoder
        is compiled once instead of twice. None for longer prompts, and where an empty cache is more than empty slots.
        """
        if memory.prompt > 1 or prompts.prefix is not None or self.hidden or not memory.branches:
            return None
        step = Step.start(prompts.valid[:, :0], cache_length).advance()
        return memory.replace(cache=jax.tree.map(jnp.zeros_like, memory.cache), step=step, prompt=0)

    def take(
        self, context: Context, memory: Memory, tokens: Int[Array, "R T"], step: Step
    ) -> tuple[Float[Array, "R T V"], Memory]:
        """Reads tokens by a step; returns the logits behind each, and a memory that keeps this step."""
        logits, changed = self._call(context, {"cache": memory.cache}, tokens, step, ["cache"])
        return logits, memory.replace(cache=changed["cache"], step=step, hidden=self._hidden(changed))

    def in_loop(self, context: Context, memory: Memory, rows: int, steps: int) -> Context:
        """The same for a loop of `steps` that read `rows` each: weights in the order in which it reads them fast."""
        stack = layout_of(self.model, context.variables).scanned
        variables = dict(context.variables)
        prepared = variables.pop(PREPARED, None)
        params, order = order_weights(variables["params"], rows, steps, stack, prepared)
        return context.replace(variables=variables | {"params": params}, order=order)

    def step(self, context: Context, memory: Memory, tokens: Int[Array, " R"]) -> tuple[Float[Array, "R V"], Memory]:
        """Reads one token per row; returns the logits of the next."""
        context, tokens = _held_in_place(context, tokens)
        tokens = tokens.reshape(-1, memory.width)  # one per row, or the branches of a row side by side
        logits, memory = self.take(context, memory, tokens, memory.step)
        hidden = None if memory.hidden is None else memory.hidden.reshape(-1, 1, memory.hidden.shape[-1])
        return logits.reshape(-1, logits.shape[-1]), memory.replace(step=memory.step.advance(), hidden=hidden)

    def read(self, context: Context, memory: Memory, tokens: Int[Array, "R T"]) -> tuple[Float[Array, "R T V"], Memory]:
        """Reads several tokens per row in one call; returns the logits behind each. `keep` takes some of them back."""
        if not memory.rewinds:
            raise ValueError(
                "several tokens were to be read and some taken back, and the model keeps what cannot be taken back: a "
                "ring of recent tokens, a convolution's history or a running sum; expected caches such as FullCache() "
                "alone. Decode without a draft, or give the layers another cache and reach=Window(...)."
            )
        logits, memory = self.take(context, memory, tokens, widened(memory.step, tokens.shape[1]))
        return logits, memory.replace(step=memory.step.advance())

    def keep(self, before: Memory, after: Memory, counts: Int[Array, " R"]) -> Memory:
        """`after`, as if only the first `counts` tokens of each row had been read since `before`.

        What is taken back is no longer valid; its slots are written anew as soon as no row needs them.
        """
        return after.replace(step=rewound(before.step, counts))

    def expand(self, memory: Memory, width: int, branching: bool = False) -> Memory:
        """`width` rows for every row. Hidden states are not carried on.

        Args:
          memory: of one row per item.
          width: rows per item.
          branching: the rows will only be stepped and reordered, so that they may be branches.
        """
        memory = memory.replace(hidden=None)
        if width == 1:
            return memory
        if branching and memory.branches and width <= WIDEST:
            return _branched(memory, width)
        cache = repeat_rows(memory.cache, width, memory.stacked)
        step = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0) if x.ndim and x.shape[0] > 1 else x, memory.step)
        return memory.replace(cache=cache, step=step, branches=False)

    def reorder(self, memory: Memory, rows: Int[Array, " R"]) -> Memory:
        """The memory of the given rows; rows of one item share their positions."""
        if memory.width > 1:
            parents = rows.reshape(-1, memory.width) % memory.width
            return memory.replace(step=memory.step.follow(parents))
        return memory.replace(cache=pick_rows(memory.cache, rows, memory.stacked))

    def longest_sequences(self, variables: Mapping[str, Any]) -> dict[str, int]:
        """How many positions the tables of the stacks have: `{"encoder": P, "decoder": P}`, where there is a table."""
        params = params_of(variables)
        found = dict(layout_of(self.model, variables).positions)
        for stack, rows in _table_rows(params, _POSITION_TABLE):
            found[stack] = min(found.get(stack, rows), rows)
        return found

    def vocabulary_sizes(self, variables: Mapping[str, Any]) -> dict[str, int]:
        """How many ids the token tables of the stacks know: `{"encoder": V, "decoder": V}`, where there is a table."""
        found, params = {}, params_of(variables)
        for stack, rows in _table_rows(params, "token_embedder", _TOKEN_TABLE):
            found[stack] = min(found.get(stack, rows), rows)
        shared = params.get("token_embedder", {}).get(_TOKEN_TABLE)
        return found if shared is None else dict.fromkeys(("encoder", "decoder"), shared.shape[0])

    def _call(
        self,
        context: Context,
        cache: Mapping[str, Any],
        tokens: Int[Array, "R T"],
        step: Step,
        mutable: list[str],
        **flags: Array,
    ) -> tuple[Float[Array, "R T V"], Any]:
        options: dict[str, Any] = {"step": step, "enable_dropout": False, "mutable": mutable, **flags}
        if self.hidden:
            options |= {"mutable": [*mutable, "intermediates"], "capture_intermediates": is_last}
        with reading(context.variables["params"], context.order) as params:
            variables = {**context.variables, "params": params, **cache}
            if not self.has_encoder:
                return self.model.apply(variables, tokens, None, **options)
            encoder = (context.encoded, context.encoder_input_tokens)
            return self.model.apply(variables, *encoder, tokens, None, method="decode", **options)

    def _hidden(self, changed: Mapping[str, Any]) -> Float[Array, "R T D"] | None:
        return last_hidden(changed.get("intermediates", {})) if self.hidden else None


def _branched(memory: Memory, width: int) -> Memory:
    """Every row with `width` branches, and slots for as many of their steps as the row had slots left for tokens."""
    length = memory.prompt + width * (memory.step.slots().cache_length - memory.prompt)

    def grow(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, length - leaf.shape[-1])])

    cache = jax.tree.map(grow, memory.cache)
    rows = count_rows(cache, memory.stacked)
    return memory.replace(cache=cache, step=memory.step.branch(rows, width, length), width=width)


def _can_branch(cache: Any, caches: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether all that was cached is kept by slots that branches can share; of unknown modules nothing is assumed."""
    kept = [(caches.get(owner), name in BY_SLOT) for owner, name in _leaves(cache)]
    return all(by_slot and kind is not None and kind.branches for kind, by_slot in kept)


def _can_rewind(cache: Any, caches: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether all that was cached is kept by slots that may be written anew, in modules of a user's own by its name."""
    kept = [(caches.get(owner), name in BY_SLOT) for owner, name in _leaves(cache)]
    return all(by_slot and (kind is None or kind.rewinds) for kind, by_slot in kept)


def _leaves(cache: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """The owner and the name of every cache array."""
    for path, _ in jax.tree_util.tree_leaves_with_path(cache):
        *owner, name = (str(getattr(key, "key", key)) for key in path)
        yield tuple(owner), name


def _held_in_place(context: Context, tokens: Int[Array, " R"]) -> tuple[Context, Int[Array, " R"]]:
    """The same, but `cross_cache` seems to depend on the tokens.

    Without this XLA moves the reading transpose of the encoder's keys and values out of the loop, and then transposes
    the result back at every step: on CPU greedy decoding of 8 x 64 source tokens took 1.19 times as long.
    """
    if "cross_cache" not in context.variables:
        return context, tokens
    held, tokens = jax.lax.optimization_barrier((context.variables["cross_cache"], tokens))
    return context.replace(variables={**context.variables, "cross_cache": held}), tokens


def params_of(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters among variables.

    Raises:
      ValueError: when they are not there.
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)}; expected 'params' among them. "
            "Pass what model.init returned, or {'params': params}."
        )
    return variables["params"]


def _table_rows(params: Mapping[str, Any], *tail: str) -> Iterator[tuple[str, int]]:
    """The stack and the number of rows of every parameter whose path ends in `tail`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(key, "key", key)) for key in path]
        if tuple(names[-len(tail) :]) == tail:
            yield "encoder" if "encoder" in names else "decoder", leaf.shape[0]
