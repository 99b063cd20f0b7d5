"""In bfloat16 every family stays within a bound, which docs/pretrained.md states."""

import functools

import numpy as np
import pytest

from flaxformer.weights.pretrained import load_pretrained
from tests.parity import decoders, encoder_decoders, encoders, images, spectrograms, waves
from tests.parity.recorded import Recorded, applied
from tests.parity.test_families import DECODERS, ENCODER_DECODERS, ENCODERS

CHECKS = {
    **dict.fromkeys(DECODERS, decoders.check),
    **dict.fromkeys([name for name in ENCODER_DECODERS if name != "led"], encoder_decoders.check),
    **dict.fromkeys([name for name in ENCODERS if name != "longformer"], encoders.check),
    "vit": images.check,
    "clip": images.check_clip,
    "wav2vec2": waves.check,
    "wav2vec2_stable": waves.check,
    "whisper": spectrograms.check,
}
UNSCALED = ("t5", "t5_1_1", "mt5", "umt5")  # their scores are not divided by the root of a head's width


@pytest.mark.slow
@pytest.mark.parametrize("family", CHECKS)
def test_all_outputs_stay_within_their_bounds(family, monkeypatch):
    """Logits, hidden states, attention weights and losses, relative to the largest of each array."""
    for module in (decoders, encoder_decoders, encoders, images, spectrograms, waves):
        monkeypatch.setattr(module, "load_pretrained", functools.partial(load_pretrained, dtype="bfloat16"))
        monkeypatch.setattr(module, "close", share_of_the_largest)
        monkeypatch.setattr(module, "close_weights", share_of_the_largest_weight)
    assert 1e-3 < CHECKS[family](family) <= (0.15 if family in UNSCALED else 0.05)


def share_of_the_largest(ours, theirs, where=None):
    ours = np.asarray(ours, np.float32)[tuple(slice(0, size) for size in theirs.shape)]
    error = np.abs(ours - theirs)
    return float((error if where is None else error[where.astype(bool)]).max() / np.abs(theirs).max())


def share_of_the_largest_weight(ours, theirs, where):
    return share_of_the_largest(np.moveaxis(np.asarray(ours, np.float32), 1, 2), np.moveaxis(theirs, 1, 2), where)


@pytest.mark.parametrize("family", ["llama"])
def test_bfloat16_stays_within_its_bounds(family):
    """The largest difference from float32 logits is below a fiftieth of the largest of them."""
    recorded = Recorded(family)
    logits = []
    for dtype in ("float32", "bfloat16"):
        model, variables = load_pretrained(recorded.folder, dtype=dtype)
        call = {"decoder_input_tokens": recorded.given("nomask", "input_ids")}
        call["decoder_valid"] = np.ones_like(call["decoder_input_tokens"])
        logits.append(np.asarray(applied(model, variables, call)[0], np.float32))
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 0 < error < 0.02, error
