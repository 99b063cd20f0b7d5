"""Speculative decoding: a draft guesses several tokens, the model reads them at once, and what it agrees with stays.

What comes out has the distribution of plain decoding, whatever the draft: a guess x is kept with probability
`min(1, p(x) / q(x))`, p being the model's law and q the draft's; the first one that is not kept is drawn anew from
what p has beyond q. Greedy search's law has one token, and the same rule then gives its very tokens.

Glossary:

* *round*: one proposal of k tokens and one call of the model, which writes 1 to k + 1 tokens per row.
* *lockstep*: all rows that still write keep equally many tokens. Rows of a batch write the same cache slots, so a row
  that keeps fewer tokens than another leaves slots empty for good. The cache has room for that, up to twice the
  tokens asked for; once it runs out, rows go on in lockstep. (Cutting a row's guesses short is harmless: they are drawn
  anew.)

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023), algorithm 1; Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling" (2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.checks import Fault, not_finite
from flaxformer.decoding.drafts import Draft, Proposal, Rules
from flaxformer.decoding.loop import check_vocabulary
from flaxformer.decoding.prompts import make_prompts
from flaxformer.decoding.strategies.base import Generated, Request
from flaxformer.decoding.strategies.rows import RowState
from flaxformer.types import Array, PRNGKey


class Guessing(flax.struct.PyTreeNode):
    """A batch that is being decoded with a draft.

    Attributes:
      context: what stays as it is.
      memory: what the model remembers.
      draft: the draft's state.
      states: those of the constraints.
      last: `[R]`, written last and not read yet.
      tokens: `[R L]`, what is written.
      counts: `[R]`, how much of it counts.
      scores: `[R]`.
      ended: `[R]`, whether a row is complete.
      free: cache slots that are left.
      rounds: calls of the model after the prompt.
      rng: the key of the rounds to come.
      fault: what was wrong with logits, where the loop checks them.
    """

    context: Any
    memory: Any
    draft: Any
    states: Any
    last: Int[Array, " R"]
    tokens: Int[Array, "R L"]
    counts: Int[Array, " R"]
    scores: Float[Array, " R"]
    ended: Bool[Array, " R"]
    free: Int[Array, ""]
    rounds: Int[Array, ""]
    rng: PRNGKey
    fault: Fault | None = None


@dataclasses.dataclass(frozen=True)
class SpeculativeLoop:
    """Several tokens per step and row; the same doors as `flaxformer.decoding.loop.Loop`.

    Attributes:
      session: the model.
      rules: the strategy, the constraints and the request.
      draft: what guesses.
      bos_id: the start token, or None.
      checks: whether to look for logits that are no numbers.
    """

    session: Any
    rules: Rules
    draft: Draft
    bos_id: int | None
    checks: bool = False

    @property
    def request(self) -> Request:
        return self.rules.request

    def begin(self, variables: Mapping[str, Any], inputs: Mapping[str, Array], rng: PRNGKey) -> Guessing:
        """Reads the inputs with model and draft, and writes the first token of every row."""
        request, strategy = self.request, self.rules.strategy
        rows = request.batch * strategy.width
        prompts = make_prompts(inputs, request.batch * self.session.copies, self.bos_id)
        slots = request.max_new_tokens * (1 if rows == 1 else 2) + self.draft.length + 1
        context = self.session.open(variables, inputs)
        logits, context, memory = self.session.prefill(context, prompts, prompts.tokens.shape[1] + slots)
        for part in (strategy, *self.rules.constraints):
            check_vocabulary(part, request, logits.shape[-1])
        memory = self.session.expand(memory, strategy.width)
        own = {name: x[: request.batch] for name, x in inputs.items()}
        seen = self.session.seen(prompts.first(request.batch))
        states = tuple(x.init(request, seen, strategy.width) for x in self.rules.constraints)
        logits = jnp.repeat(logits, strategy.width, axis=0).astype(jnp.float32)
        rng, key = jax.random.split(rng)
        law, allowed = self.rules.law(logits, states)
        first = jax.random.categorical(key, law).astype(jnp.int32)
        room = request.max_new_tokens + self.draft.length + 1
        running = Guessing(
            context=context,
            memory=self.session.keep(memory, memory, jnp.zeros((rows,), jnp.int32)),
            draft=self.draft.begin(own, seen, request, seen.tokens.shape[1] + slots, strategy.width),
            states=self.rules.advance(states, first),
            last=first,
            tokens=jnp.full((rows, room), request.pad_id, jnp.int32).at[:, 0].set(first),
            counts=jnp.ones((rows,), jnp.int32),
            scores=self.rules.worth(logits, allowed, law, first),
            ended=request.ends(first) | (request.max_new_tokens == 1),
            free=jnp.asarray(slots, jnp.int32),
            rounds=jnp.zeros((), jnp.int32),
            rng=rng,
        )
        fault = Fault.none().note(not_finite(logits), jnp.zeros((1,), jnp.int32)) if self.checks else None
        return running.replace(fault=fault)

    def done(self, running: Guessing) -> Bool[Array, ""]:
        return jnp.all(running.ended)

    def rows(self, running: Guessing) -> int:
        """How many the model reads at a step."""
        return len(running.last) * self.session.copies * (self.draft.length + 1)

    def step(self, running: Guessing) -> Guessing:
        """One round."""
        rng, guess, accept, redraw = jax.random.split(running.rng, 4)
        proposal, draft = self.draft.propose(running.draft, running.last, self.rules, running.states, guess)
        read = jnp.concatenate([running.last[:, None], proposal.tokens], axis=1)  # [R k+1]
        logits, memory = self.session.read(running.context, running.memory, read)
        if proposal.law is not None and proposal.law.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"the draft model's vocabulary has {proposal.law.shape[-1]} tokens and the model's {logits.shape[-1]}; "
                "expected the same, for guesses are compared token by token."
            )
        logits = logits.astype(jnp.float32)
        laws, allowed, states = self._follow(logits, running.states, proposal.tokens)
        agreed = _agreed(accept, laws, proposal)
        new = _redrawn(redraw, laws, proposal, agreed)
        written = jnp.where(jnp.arange(read.shape[1]) == agreed[:, None], new[:, None], jnp.roll(read, -1, axis=1))
        counts = self._counted(running, written, agreed + 1)
        worth = jax.vmap(self.rules.worth, in_axes=1, out_axes=1)(logits, allowed, laws, written)
        counted = jnp.arange(read.shape[1]) < counts[:, None]
        fault = running.fault
        if fault is not None:
            bad = not_finite(logits) & counted
            fault = fault.note(jnp.any(bad, axis=1), running.counts + jnp.argmax(bad, axis=1))
        running = self._write(running, written, counts)
        return running.replace(
            memory=self.session.keep(running.memory, memory, counts),
            draft=self.draft.keep(running.draft, draft, read, counts),
            states=self._states(states, new, agreed, counts),
            scores=running.scores + jnp.sum(jnp.where(counted, worth, 0.0), axis=1),
            free=running.free - jnp.max(counts),
            rounds=running.rounds + 1,
            rng=rng,
            fault=fault,
        )

    def _follow(self, logits: Float[Array, "R k1 V"], states: Any, tokens: Int[Array, "R k"]) -> Any:
        """The law behind every token read, and the constraints' states before each: `[R k1 V]`, `[k1 R ...]`."""

        def follow(states: Any, token: Int[Array, " R"]) -> Any:
            after = self.rules.advance(states, token)
            return after, after

        _, after = jax.lax.scan(follow, states, tokens.T)
        known = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), states, after)
        laws, allowed = jax.vmap(self.rules.law, in_axes=(1, 0), out_axes=1)(logits, known)
        return laws, allowed, known

    def _counted(self, running: Guessing, written: Int[Array, "R k1"], counts: Int[Array, " R"]) -> Int[Array, " R"]:
        """How many of the tokens count: up to EOS, up to the limit, none of complete rows, and lockstep if need be."""
        ends = self.request.ends(written)
        counts = jnp.minimum(counts, jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1) + 1, counts))
        missing = jnp.where(running.ended, 0, self.request.max_new_tokens - running.counts)
        counts = jnp.minimum(counts, missing)
        enough = running.free - jnp.max(counts) >= jnp.max(missing - counts) + self.draft.length + 1
        fewest = jnp.min(jnp.where(running.ended, written.shape[1], counts))
        return jnp.where(enough, counts, jnp.minimum(counts, fewest))

    def _write(self, running: Guessing, written: Int[Array, "R k1"], counts: Int[Array, " R"]) -> Guessing:
        rows = jnp.arange(len(counts))
        ahead = jnp.arange(written.shape[1])
        columns = jnp.where(ahead < counts[:, None], running.counts[:, None] + ahead, running.tokens.shape[1])
        final = jnp.take_along_axis(written, jnp.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
        last = jnp.where(counts > 0, final, running.last)
        total = running.counts + counts
        return running.replace(
            last=last,
            tokens=running.tokens.at[rows[:, None], columns].set(written, mode="drop"),
            counts=total,
            ended=running.ended | self.request.ends(last) | (total >= self.request.max_new_tokens),
        )

    def _states(self, states: Any, new: Int[Array, " R"], agreed: Int[Array, " R"], counts: Int[Array, " R"]) -> Any:
        """The constraints' states behind the tokens that count: guesses only, or guesses and the token drawn anew."""
        rows = jnp.arange(len(counts))
        before = jax.tree.map(lambda x: x[jnp.minimum(counts, agreed), rows], states)
        whole = counts == agreed + 1
        choose = lambda x, y: jnp.where(whole.reshape(-1, *[1] * (x.ndim - 1)), x, y)  # noqa: E731
        return jax.tree.map(choose, self.rules.advance(before, new), before)

    def finish(self, running: Guessing) -> Generated:
        return self._rows(running).finish()

    def going(self, running: Guessing) -> Bool[Array, " B"]:
        """Which items still write."""
        return self._rows(running).going()

    def so_far(self, running: Guessing) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        """The tokens of every row, and how many these are."""
        return self._rows(running).so_far()

    def _rows(self, running: Guessing) -> RowState:
        tokens = running.tokens[:, : self.request.max_new_tokens].T
        return RowState(
            running.rounds, tokens, running.scores, running.counts, running.ended, running.rng, self.request
        )


def _agreed(key: PRNGKey, laws: Float[Array, "R k1 V"], proposal: Proposal) -> Int[Array, " R"]:
    """How many guesses are kept before the first that is not."""
    pick = lambda law: jnp.take_along_axis(law, proposal.tokens[..., None], axis=-1)[..., 0]  # noqa: E731
    guessed = 0.0 if proposal.law is None else pick(proposal.law)
    ratio = jnp.exp(pick(laws[:, :-1]) - guessed)  # [R k]
    kept = jax.random.uniform(key, ratio.shape) < ratio
    return jnp.sum(jnp.cumprod(kept, axis=1), axis=1, dtype=jnp.int32)


def _redrawn(
    key: PRNGKey, laws: Float[Array, "R k1 V"], proposal: Proposal, agreed: Int[Array, " R"]
) -> Int[Array, " R"]:
    """The token behind the guesses that are kept: from what p has beyond q, or from p behind the last of them."""
    at = lambda x: jnp.take_along_axis(x, agreed.reshape(-1, *[1] * (x.ndim - 1)), axis=1, mode="clip")[:, 0]  # noqa: E731
    model = jnp.exp(at(laws))  # [R V]
    if proposal.law is None:
        guess = jnp.arange(model.shape[1]) == at(proposal.tokens)[:, None]
    else:
        guess = jnp.exp(at(proposal.law))
    all_kept = (agreed == proposal.tokens.shape[1])[:, None]
    beyond = jnp.where(all_kept, model, jnp.maximum(model - guess, 0.0))
    beyond = jnp.where(jnp.any(beyond > 0, axis=1, keepdims=True), beyond, model)  # rounding left nothing
    return jax.random.categorical(key, jnp.log(beyond)).astype(jnp.int32)
