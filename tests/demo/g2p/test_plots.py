import numpy as np
import pytest

from flaxformer.demo.g2p.plots import attention_heat_map


def test_a_picture_is_written(tmp_path):
    path = attention_heat_map(tmp_path / "new" / "cat.png", "cat", ("K", "AE"), np.full((3, 4), 0.25))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_weights_of_another_word_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights has shape \(4, 3\); expected \(3, 4\) for 2 phonemes and 3 letters"):
        attention_heat_map(tmp_path / "cat.png", "cat", ("K", "AE"), np.zeros((4, 3)))
