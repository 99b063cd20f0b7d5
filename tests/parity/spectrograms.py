"""Spectrograms to text: every recorded call as rows of one batch."""

import json

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
    shifted,
)

WEIGHTS = {
    "encoder_attentions": ("encoder", "attention"),
    "decoder_attentions": ("decoder", "self_attention"),
    "cross_attentions": ("decoder", "encoder_decoder_attention"),
}


def check(family, folder=None):
    """Compares all cases; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    config = json.loads((recorded.folder / "config.json").read_text())
    cases = [case for case in recorded.cases if recorded.gave(case, "logits") is not None]
    labels = [recorded.given(case, "labels") for case in cases]
    targets = [
        recorded.given(case, "decoder_input_ids")
        if row is None
        else shifted(row, config["decoder_start_token_id"], config["pad_token_id"])
        for case, row in zip(cases, labels, strict=True)
    ]
    masks = [
        or_ones(recorded.given(case, "decoder_attention_mask"), row) for case, row in zip(cases, targets, strict=True)
    ]
    tokens, rows = batched(targets, config["pad_token_id"])
    inputs = {
        "encoder_input_tokens": np.concatenate([heard(recorded, case) for case in cases]),
        "decoder_input_tokens": tokens,
        "decoder_valid": batched(masks)[0],
    }
    logits, captured = applied(model, variables, inputs)
    errors = []
    for case, row, mask, label in zip(cases, rows, masks, labels, strict=True):
        errors.append(close(logits[row], recorded.gave(case, "logits"), mask))
        last = hidden_states(captured, "encoder")[-1]
        errors.append(close(last[row], recorded.gave(case, "encoder_last_hidden_state")))
        if label is not None:
            loss = cross_entropy(logits[row][:, : label.shape[1]], label)
            errors.append(close(loss, recorded.gave(case, "loss")))
        for stack in ("encoder", "decoder"):
            theirs = recorded.gave(case, f"{stack}_hidden_states") or []
            pairs = list(zip(hidden_states(captured, stack), theirs, strict=bool(theirs)))
            errors += [close(mine[row], other) for mine, other in pairs]
        for name, (stack, part) in WEIGHTS.items():
            theirs = recorded.gave(case, name) or []
            ours = attention_weights(captured, stack, part)
            pairs = zip(ours, theirs, strict=bool(theirs))
            errors += [close_weights(mine[row], other, None) for mine, other in pairs]
    return max(errors)


def heard(recorded, case):
    """The spectrograms of a case, with channels last."""
    return np.moveaxis(recorded.given(case, "input_features"), 1, -1)
