"""What each attribute of a BigBird changes in the model."""

import json
import shutil

import pytest

from flaxformer.weights.pretrained.loading import Folder
from tests.parity.recorded import FIXTURES


def opened(tmp_path, **changes):
    """The fixture with other attributes."""
    place = tmp_path / "big_bird"
    shutil.copytree(FIXTURES / "bigbird", place)
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    return Folder.open(place)


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"rescale_embeddings": True}, f"EMBEDDING_SCALE = {32**0.5!r}"),
        ({"attention_type": "original_full"}, "ATTENTION = @dense_attention.MultiHeadDotProductAttention()"),
        ({"num_random_blocks": 2, "block_size": 8}, "RANDOM_BLOCKS = 2"),
        ({"use_bias": False}, "BIASED = ('out',)"),
        ({"architectures": ["BigBirdModel"]}, "HEADS = %POOLED_HEADS"),
        ({"architectures": ["BigBirdForSequenceClassification"]}, "HEADS = %SEQUENCE_HEADS"),
    ],
)
def test_attributes_become_bindings(tmp_path, changes, statement):
    folder = opened(tmp_path, **changes)
    assert statement in folder.statements
    folder.model()


def test_what_is_not_implemented_is_refused(tmp_path):
    with pytest.raises(ValueError, match="architecture 'BigBirdForQuestionAnswering', which is not"):
        opened(tmp_path, architectures=["BigBirdForQuestionAnswering"])
