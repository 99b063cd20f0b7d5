"""Encoders of images: every recorded call is of the same shape, and so one batch each."""

import numpy as np

from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import (
    Recorded,
    applied,
    attention_weights,
    close,
    close_weights,
    cross_entropy,
    hidden_states,
)

NAMES = {"last_hidden_state": "hidden", "pooler_output": "pooled", "logits": "labels"}


def check(family, folder=None):
    """Compares all cases; returns the largest error."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    errors = []
    for case in recorded.cases:
        images = np.moveaxis(recorded.given(case, "pixel_values"), 1, -1)
        outputs, captured = applied(model, variables, {"images": images})
        for name, ours in NAMES.items():
            if (theirs := recorded.gave(case, name)) is not None:
                errors.append(close(outputs[ours], theirs))
        if (theirs := recorded.gave(case, "hidden_states")) is not None:
            states = hidden_states(captured, "encoder", norm=False)
            errors += [close(mine, other) for mine, other in zip(states, theirs, strict=True)]
            weights = attention_weights(captured, "encoder", "attention")
            pairs = zip(weights, recorded.gave(case, "attentions"), strict=True)
            errors += [close_weights(mine, other, None) for mine, other in pairs]
        if (labels := recorded.given(case, "labels")) is not None:
            loss = cross_entropy(np.asarray(outputs["labels"])[:, None], labels[:, None])
            errors.append(close(loss, recorded.gave(case, "loss")))
    return max(errors)


def check_clip(family, folder=None):
    """Compares both towers and what they give together."""
    recorded = Recorded(family)
    model, variables = load_pretrained(folder or recorded.folder)
    errors = []
    for case in ("main", "loss"):
        tokens, mask = recorded.given(case, "input_ids"), recorded.given(case, "attention_mask")
        images = np.moveaxis(recorded.given(case, "pixel_values"), 1, -1)
        outputs, captured = applied(model, variables, {"tokens": tokens, "images": images, "valid": mask > 0})
        errors += [close(outputs["logits_per_text"], recorded.gave(case, "logits_per_text"))]
        errors += [close(outputs["logits_per_text"].T, recorded.gave(case, "logits_per_image"))]
        errors += [
            close(outputs[tower]["embeds"], recorded.gave(case, f"{tower}_embeds")) for tower in ("text", "image")
        ]
        if (theirs := recorded.gave(case, "loss")) is not None:
            logits, labels = np.asarray(outputs["logits_per_text"])[None], np.arange(len(tokens))[None]
            both = [cross_entropy(x, labels) for x in (logits, logits.swapaxes(1, 2))]
            errors.append(close(np.mean(both), theirs))
        if case == "main":
            errors += _towers(recorded, outputs, captured, mask)
    return max(errors)


def _towers(recorded, outputs, captured, mask):
    errors = []
    for case, tower, where in (("text", "text", mask), ("vision", "image", None)):
        inner = {kind: captured[kind][tower] for kind in ("intermediates", "attention")}
        errors.append(close(outputs[tower]["hidden"], recorded.gave(case, "last_hidden_state"), where))
        errors.append(close(outputs[tower]["pooled"], recorded.gave(case, "pooler_output")))
        states = hidden_states(inner, "encoder", norm=False)
        errors += [close(x, y, where) for x, y in zip(states, recorded.gave(case, "hidden_states"), strict=True)]
        weights = attention_weights(inner, "encoder", "attention")
        pairs = zip(weights, recorded.gave(case, "attentions"), strict=True)
        errors += [close_weights(x, y, where) for x, y in pairs]
    return errors
