"""Generation with Hugging Face's T5 in Flax. Its interpreter needs: pip install "transformers<5" jax flax optax"""

import jax
import jax.numpy as jnp
from serve import serve, settings, tokens

_clip = jnp.clip
jnp.clip = lambda x, a_min=None, a_max=None, **named: _clip(x, a_min, a_max, **named)  # keywords that JAX has removed
from hf_flax import compiled  # noqa: E402
from transformers import FlaxT5ForConditionalGeneration, T5Config  # noqa: E402


def make_tasks():
    """One program per case: `beams`, `batch`, `source` and `new` tokens."""
    asked = settings()
    config = T5Config(**asked["shape"], tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0)
    model = FlaxT5ForConditionalGeneration(config, seed=0, input_shape=(1, 2))
    tasks = {}
    for case in asked["cases"]:
        source = jnp.array(tokens(case["batch"], case["source"], asked["shape"]["vocab_size"], 0), jnp.int32)
        length = case["new"] + 1  # with the start token

        def generate(params, source, length=length, beams=case["beams"]):
            found = model.generate(
                source,
                params=params,
                max_length=length,
                min_length=length,
                num_beams=beams,
                do_sample=False,
                early_stopping=False,
            )
            return found.sequences

        run, known = compiled(generate, (model.params, source))
        task = lambda run=run, source=source: jax.block_until_ready(run(model.params, source))  # noqa: E731
        tasks[case["name"]] = (task, known)
    return tasks, sum(x.size for x in jax.tree.leaves(model.params))


if __name__ == "__main__":
    serve("hf_flax", ["transformers", "jax", "jaxlib", "flax"], make_tasks)
