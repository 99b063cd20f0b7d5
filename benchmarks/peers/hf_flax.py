"""Hugging Face's T5 in Flax, last shipped by transformers 4. Its interpreter needs:
pip install "transformers<5" jax flax optax
"""

import time

import jax
import jax.numpy as jnp
import optax
from serve import serve, settings, tokens

_clip = jnp.clip
jnp.clip = lambda x, a_min=None, a_max=None, **named: _clip(x, a_min, a_max, **named)  # keywords that JAX has removed
from transformers import FlaxT5ForConditionalGeneration, T5Config  # noqa: E402


def compiled(function, arguments, donate=()):
    """The executable, and what is known of it."""
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    traced = time.perf_counter()
    run = lowered.compile()
    known = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
    memory = run.memory_analysis()
    size = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    size["peak"] = size["arguments"] + size["outputs"] - size["aliased"] + size["temporaries"]
    return run, known | {"bytes": size}


def make_tasks():
    """Forward pass, and training step: mean cross entropy, gradient, AdamW."""
    asked = settings()
    config = T5Config(**asked["shape"], tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0)
    model = FlaxT5ForConditionalGeneration(config, seed=0, input_shape=(1, 2))
    vocabulary = asked["shape"]["vocab_size"]
    source = jnp.array(tokens(asked["batch"], asked["source"], vocabulary, 0), jnp.int32)
    target = jnp.array(tokens(asked["batch"], asked["target"], vocabulary, 1), jnp.int32)
    optimizer = optax.adamw(1e-4)

    def logits(params, source, target):
        return model(input_ids=source, decoder_input_ids=target, params=params).logits

    def loss_of(params, source, target):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, source, target), target).mean()

    def step(carry, source, target):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params, source, target)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    tasks = {}
    if "forward" in asked["programs"]:
        forward, known = compiled(logits, (model.params, source, target))
        params = model.params
        tasks["forward"] = (lambda: jax.block_until_ready(forward(params, source, target)), known)
    if "train" in asked["programs"]:
        # Copied, since a donated argument is gone afterwards.
        carry = [jax.tree.map(jnp.copy, (model.params, optimizer.init(model.params)))]
        train, known = compiled(step, (carry[0], source, target), (0,) if asked["donate"] else ())

        def advance():
            carry[0], loss = train(carry[0], source, target)
            return jax.block_until_ready((carry[0], loss))

        tasks["train"] = (advance, known)
    return tasks, sum(x.size for x in jax.tree.leaves(model.params))


if __name__ == "__main__":
    serve("hf_flax", ["transformers", "jax", "jaxlib", "flax", "optax"], make_tasks)
