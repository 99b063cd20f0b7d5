"""Encoder-decoders: every recorded call as rows of one batch."""

import json

import numpy as np

from flaxformer.weights.pretrained import load_pretrained
from tests.parity import windows
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


def check(family, folder=None):
    """Compares all cases; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    config = json.loads((recorded.folder / "config.json").read_text())
    start, pad = config["decoder_start_token_id"], config["pad_token_id"]
    cases = [case for case in recorded.cases if recorded.gave(case, "logits") is not None]
    sources = [recorded.given(case, "input_ids") for case in cases]
    masks = [or_ones(recorded.given(case, "attention_mask"), ids) for case, ids in zip(cases, sources, strict=True)]
    targets = [_decoder_inputs(recorded, case, start, pad) for case in cases]
    seen = [
        or_ones(recorded.given(case, "decoder_attention_mask"), ids) for case, ids in zip(cases, targets, strict=True)
    ]
    inputs, rows = batched(sources, pad)
    inputs = {
        "encoder_input_tokens": inputs,
        "encoder_valid": batched(masks)[0],
        "decoder_input_tokens": batched(targets, pad)[0],
        "decoder_valid": batched(seen)[0],
    }
    flags = [recorded.given(case, "global_attention_mask") for case in cases]
    flags = [np.zeros_like(ids) if flag is None else flag for flag, ids in zip(flags, sources, strict=True)]
    if any(flag.any() for flag in flags):
        inputs["global_tokens"] = batched(flags)[0]
    logits, captured = applied(model, variables, inputs)
    errors = []
    for case, row, mask, own, flag in zip(cases, rows, masks, seen, flags, strict=True):
        if case != "unscaled":
            errors.append(close(logits[row], recorded.gave(case, "logits"), own))
        if (labels := recorded.given(case, "labels")) is not None:
            loss = cross_entropy(logits[row][:, : labels.shape[1]], labels)
            errors.append(close(loss, recorded.gave(case, "loss")))
        for stack, where in (("encoder", mask), ("decoder", own)):
            theirs = recorded.gave(case, f"{stack}_hidden_states")
            if theirs is None:
                continue
            ours = hidden_states(captured, stack)[-1:] if len(theirs) == 1 else hidden_states(captured, stack)
            errors += [close(mine[row], other, where) for mine, other in zip(ours, theirs, strict=True)]
        for name, stack, part, where in (
            ("encoder_attentions", "encoder", "attention", mask),
            ("decoder_attentions", "decoder", "self_attention", own),
            ("cross_attentions", "decoder", "encoder_decoder_attention", own),
        ):
            theirs = recorded.gave(case, name)
            if theirs is None:
                continue
            ours = attention_weights(captured, stack, part)
            if (far := recorded.gave(case, name.replace("attentions", "global_attentions"))) is not None:
                for mine, other, more in zip(ours, theirs, far, strict=True):
                    errors += windows.errors(mine[row], other, more, where, flag)
                continue
            errors += [close_weights(mine[row], other, where) for mine, other in zip(ours, theirs, strict=True)]
    return max(errors)


def _decoder_inputs(recorded, case, start, pad):
    labels = recorded.given(case, "labels")
    return recorded.given(case, "decoder_input_ids") if labels is None else shifted(labels, start, pad)
