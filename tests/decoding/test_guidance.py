import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import BeamSearch, Greedy, Guidance, PromptLookup, generate
from tests.decoding.tabular import EOS, decode, log_probs, random_table
from tests.decoding.tiny import tiny

PROMPTS, OTHER = [[2, 3], [5, 4]], [[3, 3], [2, 5]]
BOTH = jnp.array(PROMPTS + OTHER)


def by_hand(variables, prompt, other, steps, scale):
    table, written = log_probs(variables), []
    while len(written) < steps and EOS not in written:
        own, away = ([0, *x, *written] for x in (prompt, other))
        own, away = (table[x[-2], x[-1]] for x in (own, away))
        written.append(int(np.argmax(away + scale * (own - away))))
    return written


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_both_contexts_are_weighed_at_every_step(scale):
    for seed in range(5):
        variables = random_table(seed)
        found = decode(variables, BOTH, Greedy(), 5, scale=scale)
        for item in range(2):
            expected = by_hand(variables, PROMPTS[item], OTHER[item], 5, scale)
            assert np.asarray(found.tokens)[item, 0, : len(expected)].tolist() == expected


@pytest.mark.slow
def test_a_scale_of_one_is_no_guidance_under_beams_and_drafts():
    model, variables = tiny()
    prompts, other = np.array([[3, 4], [5, 0]]), np.array([[7, 8, 9], [6, 0, 0]])
    options = {"max_new_tokens": 4, "eos_id": EOS}
    for more in ({"strategy": BeamSearch(2)}, {"strategy": Greedy(), "draft": PromptLookup(2)}):
        guided = generate(model, variables, prompts, guidance=Guidance(other, 1.0), **more, **options)
        plain = generate(model, variables, prompts, **more, **options)
        np.testing.assert_array_equal(guided.tokens, plain.tokens)
        np.testing.assert_allclose(guided.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_contexts_that_do_not_fit_are_refused():
    model, variables = tiny()
    options = {"strategy": Greedy(), "max_new_tokens": 4, "eos_id": EOS, "guidance": Guidance(np.array([[7]]))}
    with pytest.raises(ValueError, match="for 1 items; expected .* for 2 items"):
        generate(model, variables, np.array([[3], [4]]), **options)
