"""What each attribute of a Longformer changes in the model."""

import json
import shutil

import pytest

from flaxformer.weights.pretrained.loading import Folder
from tests.parity.recorded import FIXTURES


def opened(tmp_path, **changes):
    """The fixture with other attributes."""
    place = tmp_path / "longformer"
    shutil.copytree(FIXTURES / "longformer", place)
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    return Folder.open(place)


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"attention_window": 6}, "WINDOW = 3"),
        ({"attention_window": [6, 6]}, "WINDOW = 3"),
        ({}, "window_8/longformer_attention.LongformerAttention.window = 4"),
        ({"architectures": ["LongformerForSequenceClassification"]}, "FLAG_TOKENS = @global_flags.First()"),
        ({"architectures": ["LongformerForQuestionAnswering"]}, "FLAG_TOKENS = @global_flags.BeforeSeparator()"),
        ({"sep_token_id": 5}, "SEPARATOR_ID = 5"),
    ],
)
def test_attributes_become_bindings(tmp_path, changes, statement):
    folder = opened(tmp_path, **changes)
    assert statement in folder.statements
    folder.model()


@pytest.mark.parametrize("sizes", [[4, 8, 4], [4, 7], 0])
def test_windows_that_fit_no_layers_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match="has attention_window=.*; expected even numbers above 0, one for each of 2"):
        opened(tmp_path, attention_window=sizes)


def test_a_question_is_global_where_nothing_else_is_said(tmp_path):
    folder = opened(tmp_path, architectures=["LongformerForQuestionAnswering"])
    assert folder.model().flag_tokens.separator_id == 2
