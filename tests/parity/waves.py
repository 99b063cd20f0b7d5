"""Encoders of waves: every recorded call of one length as rows of one batch."""

import json

import jax.numpy as jnp
import numpy as np

from flaxformer.training.ctc import ctc_loss
from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import (
    Recorded,
    applied,
    attention_weights,
    close,
    close_weights,
    hidden_states,
    or_ones,
)

NAMES = {"logits": "ctc", "last_hidden_state": "hidden", "extract_features": "features"}


def check(family, folder=None):
    """Compares all cases, padding included; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    config = json.loads((recorded.folder / "config.json").read_text())
    lengths = {recorded.given(case, "input_values").shape[1] for case in recorded.cases}
    errors = []
    for length in sorted(lengths):
        cases = [case for case in recorded.cases if recorded.given(case, "input_values").shape[1] == length]
        waves = [recorded.given(case, "input_values") for case in cases]
        masks = [or_ones(recorded.given(case, "attention_mask"), wave) for case, wave in zip(cases, waves, strict=True)]
        inputs = {"wave": np.concatenate(waves), "valid": np.concatenate(masks) > 0}
        outputs, captured = applied(model, variables, inputs)
        start = 0
        for case, wave in zip(cases, waves, strict=True):
            row = slice(start, start + len(wave))
            start += len(wave)
            errors += _compare(recorded, case, row, outputs, captured, config)
    return max(errors)


def _compare(recorded, case, row, outputs, captured, config):
    errors = []
    for name, ours in NAMES.items():
        if (theirs := recorded.gave(case, name)) is not None:
            errors.append(close(outputs[ours][row], theirs))
    if (theirs := recorded.gave(case, "hidden_states")) is not None:
        states = hidden_states(captured, "encoder", norm=False)
        errors += [close(mine[row], other) for mine, other in zip(states, theirs, strict=True)]
        weights = attention_weights(captured, "encoder", "attention")
        pairs = zip(weights, recorded.gave(case, "attentions"), strict=True)
        errors += [close_weights(mine[row], other, None) for mine, other in pairs]
    if (labels := recorded.given(case, "labels")) is not None:
        assert config["ctc_loss_reduction"] == "sum"
        valid = outputs["valid"][row]
        losses = ctc_loss(outputs["ctc"][row], jnp.asarray(labels), valid=valid, blank_id=config["pad_token_id"])
        errors.append(close(losses.sum(), recorded.gave(case, "loss")))
    return errors
