"""What the routers of Mixtral and Switch Transformers say, and their losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.mixture import load_balancing_loss, router_z_loss
from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import Recorded, close


def routed(recorded, stack, inputs):
    """The logits of the stack's routers, layer by layer."""
    model, variables = load_pretrained(recorded.folder)
    run = jax.jit(lambda v: model.apply(v, **inputs, enable_dropout=False, mutable=["intermediates"])[1])
    captured = run(variables)["intermediates"][stack]
    layers = sorted(name for name in captured if "mlp" in captured[name])
    return [captured[name]["mlp"]["router_logits"][0] for name in layers]


def best(logits, count):
    return jax.lax.top_k(logits, count)[1]


def test_mixtral():
    recorded = Recorded("mixtral")
    ids, mask = (recorded.given("router", name) for name in ("input_ids", "attention_mask"))
    logits = routed(recorded, "decoder", {"decoder_input_tokens": ids, "decoder_valid": mask})
    for ours, theirs in zip(logits, recorded.gave("router", "router_logits"), strict=True):
        close(ours, np.asarray(theirs).reshape(ours.shape), mask)
    pooled = jnp.concatenate([each.reshape(-1, 4) for each in logits])  # all layers and rows as one
    loss = load_balancing_loss(pooled, best(pooled, 2), jnp.tile(mask.reshape(-1), len(logits)))
    np.testing.assert_allclose(loss, recorded.gave("router", "aux_loss"), rtol=1e-5)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_switch_transformers(stack):
    recorded = Recorded("switch_transformers")
    given = {name: recorded.given("router", name) for name in ("input_ids", "attention_mask")}
    theirs = {name: recorded.given("router", f"decoder_{name}") for name in ("input_ids", "attention_mask")}
    inputs = {
        "encoder_input_tokens": given["input_ids"],
        "encoder_valid": given["attention_mask"],
        "decoder_input_tokens": theirs["input_ids"],
        "decoder_target_tokens": theirs["input_ids"],
        "decoder_valid": theirs["attention_mask"],
    }
    (logits,) = routed(recorded, stack, inputs)
    mask = (given if stack == "encoder" else theirs)["attention_mask"]
    close(logits, recorded.gave("router", f"{stack}_router_logits")[0], mask)
    recorded_logits = jnp.asarray(recorded.gave("router", f"{stack}_router_logits")[0])  # padding counts, too
    loss = load_balancing_loss(recorded_logits, best(recorded_logits, 1))
    np.testing.assert_allclose(loss, recorded.gave("router", f"{stack}_aux_loss"), rtol=1e-5)
    np.testing.assert_allclose(router_z_loss(recorded_logits), recorded.gave("router", f"{stack}_z_loss"), rtol=1e-5)
