"""Decoder-only models: every recorded call as rows of one batch."""

import jax.numpy as jnp
import numpy as np

from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import (
    Recorded,
    applied,
    attention_weights,
    batched,
    close,
    close_weights,
    cross_entropy,
    hidden_states,
    or_ones,
)


def check(family, folder=None):
    """Compares all cases; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    cases = [case for case in recorded.cases if case != "router"]
    ids = [recorded.given(case, "input_ids") for case in cases]
    masks = [or_ones(recorded.given(case, "attention_mask"), row) for case, row in zip(cases, ids, strict=True)]
    tokens, rows = batched(ids)
    inputs = {
        "decoder_input_tokens": tokens,
        "decoder_valid": batched(masks)[0],
        "decoder_positions": batched([_positions(recorded, case) for case in cases])[0],
    }
    logits, captured = applied(model, variables, inputs)
    errors = []
    for case, row, mask in zip(cases, rows, masks, strict=True):
        errors.append(close(logits[row], recorded.gave(case, "logits"), mask))
        if (theirs := recorded.gave(case, "hidden_states")) is not None:
            ours = hidden_states(captured, "decoder")
            errors += [close(mine[row], other, mask) for mine, other in zip(ours, theirs, strict=True)]
            weights = attention_weights(captured, "decoder", "self_attention")
            pairs = zip(weights, recorded.gave(case, "attentions"), strict=True)
            errors += [close_weights(mine[row], other, mask) for mine, other in pairs]
        if (labels := recorded.given(case, "labels")) is not None:
            following = logits[row][:, : labels.shape[1] - 1]
            errors.append(close(cross_entropy(jnp.asarray(following), labels[:, 1:]), recorded.gave(case, "loss")))
    return max(errors)


def _positions(recorded, case):
    """Theirs; where a model takes none (it counts by the mask) those that its mask gives, else 0, 1, ..."""
    given, mask = recorded.given(case, "position_ids"), recorded.given(case, "attention_mask")
    if given is not None:
        return np.maximum(given, 0)
    if case == "left_pad":
        return np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    ids = recorded.given(case, "input_ids")
    return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
