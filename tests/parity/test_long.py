"""LongT5 computes what Hugging Face does; its attention weights are recorded block by block."""

import numpy as np
import pytest

from tests.parity import encoder_decoders, generation
from tests.parity.recorded import Recorded


class InBlocks(Recorded):
    """The cases of a family whose encoder's weights are `[b blocks N c 3c]`: to a block's neighbours and itself."""

    def gave(self, case, name):
        found = super().gave(case, name)
        if name != "encoder_attentions" or found is None:
            return found
        length = self.given(case, "input_ids").shape[1]
        return [on_the_diagonal(weights, length) for weights in found]


def on_the_diagonal(weights, length):
    """The weights as `[b N S S]`."""
    batch, blocks, heads, size, _ = weights.shape
    out = np.zeros((batch, heads, blocks * size, (blocks + 2) * size), np.float32)
    for block in range(blocks):
        start = block * size
        out[:, :, start : start + size, start : start + 3 * size] = weights[:, block]
    return out[:, :, :length, size : size + length]


def test_local_attention(monkeypatch):
    monkeypatch.setattr(encoder_decoders, "Recorded", InBlocks)
    assert encoder_decoders.check("longt5_local") <= 1e-4


@pytest.mark.slow
def test_all_recorded_generation():
    assert generation.check("longt5_local")[0] >= 8
