"""Encoders with heads: every recorded call as rows of one batch."""

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
)

# Their outputs and ours. `logits` is whatever the one head gives.
NAMES = {
    "prediction_logits": "masked_lm",
    "seq_relationship_logits": "next_sentence",
    "sop_logits": "next_sentence",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}
WHOLE = ("seq_relationship_logits", "pooler_output", "sop_logits")  # one vector per row


def check(family, folder=None, cases=None, attentions=True):
    """Compares all cases, or those named; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    cases = cases or recorded.cases
    ids = [recorded.given(case, "input_ids") for case in cases]
    masks = [or_ones(recorded.given(case, "attention_mask"), row) for case, row in zip(cases, ids, strict=True)]
    types = [recorded.given(case, "token_type_ids") for case in cases]
    tokens, rows = batched(ids, model.padding_id)
    inputs = {"encoder_input_tokens": tokens, "encoder_valid": batched(masks)[0]}
    if any(row is not None for row in types):
        filled = [np.zeros_like(row) if kind is None else kind for kind, row in zip(types, ids, strict=True)]
        inputs["token_types"] = batched(filled)[0]
    flags = [recorded.given(case, "global_attention_mask") for case in cases]
    flags = [np.zeros_like(row) if flag is None else flag for flag, row in zip(flags, ids, strict=True)]
    if np.concatenate([flag.reshape(-1) for flag in flags]).any():
        inputs["global_tokens"] = batched(flags)[0]
    outputs, captured = applied(model, variables, inputs)
    main = "masked_lm" if "masked_lm" in outputs else "replaced"
    errors = []
    for case, row, mask, flag in zip(cases, rows, masks, flags, strict=True):
        for name, ours in (*NAMES.items(), ("logits", main)):
            if (theirs := recorded.gave(case, name)) is not None:
                errors.append(close(outputs[ours][row], theirs, None if name in WHOLE else mask))
        if (theirs := recorded.gave(case, "hidden_states")) is not None:
            ours = hidden_states(captured, "encoder")
            assert len(ours) == len(theirs)
            pairs = zip(ours, theirs, strict=True)
            errors += [close(mine[row], other[:, : mask.shape[1]], mask) for mine, other in pairs]
        if attentions and theirs is not None:
            weights = attention_weights(captured, "encoder", "attention")
            seen = recorded.gave(case, "attentions") or []
            far = recorded.gave(case, "global_attentions") or [None] * len(seen)
            for mine, other, more in zip(weights, seen, far, strict=True):
                if other.shape[-1] == other.shape[-2]:
                    errors.append(close_weights(mine[row], other, mask))
                else:
                    errors += windows.errors(mine[row], other, more, mask, flag)
        if (loss := recorded.gave(case, "loss")) is not None:
            errors.append(close(_loss(recorded, case, outputs, main, row, mask), loss))
    return max(errors)


def _loss(recorded, case, outputs, main, row, mask):
    labels = recorded.given(case, "labels")
    logits = np.asarray(outputs[main][row][:, : labels.shape[1]])
    if main == "replaced":
        terms = np.logaddexp(0, logits) - logits * labels
        return (terms * mask).sum() / mask.sum()
    loss = cross_entropy(logits, labels)
    for name in ("next_sentence_label", "sentence_order_label"):
        if (order := recorded.given(case, name)) is not None:
            loss += cross_entropy(np.asarray(outputs["next_sentence"][row])[:, None], order.reshape(-1, 1))
    return loss
