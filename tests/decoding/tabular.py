"""A model that is a table: the next token depends on the two before it. Compiles in no time and can be enumerated."""

import dataclasses
import functools
import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.decoding.constraints import Constrained
from flaxformer.decoding.drafts import Draft, Proposal, Rules
from flaxformer.decoding.guidance import GuidedSession
from flaxformer.decoding.loop import Loop, run
from flaxformer.decoding.speculative import SpeculativeLoop
from flaxformer.decoding.strategies.base import Request
from flaxformer.types import Array

EOS = 1


class Memory(flax.struct.PyTreeNode):
    before: Array  # [R T], the tokens read by the last call, behind the one before them
    hidden: Array | None = None


@dataclasses.dataclass(frozen=True)
class TableSession:
    """Looks up `table [V V V]`; a token's hidden state is its row of `states [V D]`."""

    hidden: bool = False
    copies = 1

    def seen(self, prompts):
        return prompts

    def open(self, variables, inputs):
        return variables

    def prefill(self, variables, prompts, cache_length):
        before = jnp.pad(prompts.tokens, ((0, 0), (1, 0)))[:, -2:]
        memory = Memory(before[:, 1:], self._states(variables, prompts.tokens))
        return variables["table"][before[:, 0], before[:, 1]], variables, memory

    def unread(self, memory, prompts, cache_length):
        return None

    def in_loop(self, variables, memory, rows, steps):
        return variables

    def step(self, variables, memory, tokens):
        before = memory.before[:, -1]
        memory = Memory(tokens[:, None], self._states(variables, tokens[:, None]))
        return variables["table"][before, tokens], memory

    def read(self, variables, memory, tokens):
        text = jnp.concatenate([memory.before[:, -1:], tokens], axis=1)
        return variables["table"][text[:, :-1], text[:, 1:]], Memory(text)

    def keep(self, before, after, counts):
        start = before.before[:, -1:]
        text = after.before if after is not before else start
        return Memory(jnp.take_along_axis(text, jnp.minimum(counts[:, None], text.shape[1] - 1), axis=1))

    def expand(self, memory, width, branching=False):
        return Memory(jnp.repeat(memory.before, width, axis=0))

    def reorder(self, memory, rows):
        return Memory(memory.before[rows])

    def _states(self, variables, tokens):
        return variables["states"][tokens] if self.hidden else None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["length"])
@dataclasses.dataclass(frozen=True)
class DraftTable(Draft):
    """Guesses from another table, as `DraftModel` does from another model."""

    variables: dict
    length: int = 3

    def begin(self, inputs, prompts, request, cache_length, width):
        _, _, memory = TableSession().prefill(self.variables, prompts, cache_length)
        return TableSession().expand(memory, width)

    def propose(self, state, last, rules, states, key):
        tokens, laws, memory, token = [], [], state, last
        for own in jax.random.split(key, self.length):
            logits, memory = TableSession().step(self.variables, memory, token)
            law, _ = rules.law(logits, states)
            token = jax.random.categorical(own, law).astype(jnp.int32)
            states = rules.advance(states, token)
            tokens.append(token)
            laws.append(law)
        return Proposal(jnp.stack(tokens, axis=1), jnp.stack(laws, axis=1)), state

    def keep(self, before, after, tokens, counts):
        text = jnp.concatenate([before.before, tokens], axis=1)
        return Memory(jnp.take_along_axis(text, counts[:, None], axis=1))


@functools.partial(jax.jit, static_argnames=("steps", "checks", "raw", "eos"))
def decode(
    variables,
    prompts,
    strategy,
    steps,
    constraints=(),
    draft=None,
    key=None,
    scale=None,
    checks=False,
    raw=False,
    eos=EOS,
):
    """What `generate` does, for a table; `prompts [B P]` without padding or start token. `raw`: also the last state."""
    session = TableSession(strategy.wants_hidden)
    batch = len(prompts)
    if scale is not None:
        session, batch = GuidedSession(session, scale), batch // 2
    request = Request(batch, steps, eos)
    inputs = {"decoder_prompt_tokens": prompts}
    key = jax.random.PRNGKey(0) if key is None else key
    if draft is not None:
        loop = SpeculativeLoop(session, Rules(strategy, constraints, request), draft, None, checks)
    else:
        strategy = Constrained(strategy, constraints) if constraints else strategy
        loop = Loop(session, strategy, request, None, checks)
    final = run(loop, loop.begin(variables, inputs, key))
    return (loop.finish(final), final) if raw else loop.finish(final)


def random_table(seed, vocabulary=6, sharpness=2.0, width=4):
    """Logits by the two tokens before, and hidden states."""
    random = np.random.RandomState(seed)
    table = sharpness * random.randn(vocabulary, vocabulary, vocabulary)
    return {
        "table": jnp.asarray(table, jnp.float32),
        "states": jnp.asarray(random.randn(vocabulary, width), jnp.float32),
    }


def log_probs(variables):
    return np.asarray(jax.nn.log_softmax(variables["table"]), np.float64)


def token_log_probs(variables, prompt, tokens):
    """Of every token of a sequence, by the table."""
    text, table = [0, *prompt, *tokens], log_probs(variables)
    first = len(text) - len(tokens)
    return np.array([table[tuple(text[i - 2 : i + 1])] for i in range(first, len(text))])


def every_sequence(vocabulary, steps, cut_off):
    """All sequences that end with EOS within the steps, and if `cut_off` those that do not end."""
    others = [token for token in range(vocabulary) if token != EOS]
    for length in range(steps):
        for body in itertools.product(others, repeat=length):
            yield (*body, EOS)
    yield from itertools.product(others, repeat=steps) if cut_off else ()


def results(found):
    """Every non-empty result: item, tokens up to its length, score."""
    for item in range(len(found.tokens)):
        for tokens, score, length in zip(*(np.asarray(x)[item] for x in found), strict=True):
            if length:
                yield item, tuple(tokens[:length].tolist()), float(score)
