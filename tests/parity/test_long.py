"""LongT5 computes what Hugging Face does; its attention weights are recorded block by block."""

import numpy as np
import pytest

from tests.parity import encoder_decoders, generation
from tests.parity.recorded import Recorded

FAMILIES = ("longt5_local", "longt5_tglobal")


class InBlocks(Recorded):
    """The cases of a family whose encoder's weights are `[b blocks N c 3c]`: to a block's neighbours and itself."""

    def gave(self, case, name):
        found = super().gave(case, name)
        if name != "encoder_attentions" or found is None:
            return found
        lengths = [self.given(case, "input_ids").shape[1] for case in (case, *self.cases)]
        return [on_the_diagonal(weights, lengths[0], max(lengths)) for weights in found]


def on_the_diagonal(weights, length, width):
    """The weights as `[b N S width+G]`, those on globals last."""
    batch, blocks, heads, size, columns = weights.shape
    tokens = np.zeros((batch, heads, blocks * size, (blocks + 2) * size), np.float32)
    for block in range(blocks):
        start = block * size
        tokens[:, :, start : start + size, start : start + 3 * size] = weights[:, block, ..., : 3 * size]
    out = np.zeros((batch, heads, length, width + columns - 3 * size), np.float32)
    out[..., :length] = tokens[:, :, :length, size : size + length]
    out[..., width:] = np.swapaxes(weights[..., 3 * size :], 1, 2).reshape(batch, heads, blocks * size, -1)[
        :, :, :length
    ]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_long_inputs(family, monkeypatch):
    monkeypatch.setattr(encoder_decoders, "Recorded", InBlocks)
    assert encoder_decoders.check(family) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_recorded_generation(family):
    assert generation.check(family)[0] >= 8
