"""What each attribute of a DeBERTa changes in the weights that its file must have."""

import json
import re
import shutil

import pytest

from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import FIXTURES

LAYER = "deberta.encoder.layer.0.attention.self"


def changed(tmp_path, **changes):
    """What is said of a fixture with other attributes."""
    place = tmp_path / "deberta"
    shutil.copytree(FIXTURES / "deberta_v3", place)
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as raised:
        load_pretrained(place)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"share_att_key": False}, [f"missing {LAYER}.pos_{k}_proj.bias" for k in ("key", "query")]),
        ({"share_att_key": False, "pos_att_type": "c2p"}, [f"missing {LAYER}.pos_key_proj.weight"]),
        ({"position_biased_input": True}, [r"missing deberta.embeddings.position_embeddings.weight \[32, 32\]"]),
        ({"type_vocab_size": 3}, [r"missing deberta.embeddings.token_type_embeddings.weight \[3, 32\]"]),
        ({"position_buckets": -1}, [r"rel_embeddings.weight is \[12, 32\], expected \[64, 32\]"]),
        ({"max_relative_positions": 9, "position_buckets": 0}, [r"is \[12, 32\], expected \[18, 32\]"]),
        ({"norm_rel_ebd": "none"}, ["unexpected deberta.encoder.LayerNorm.weight"]),
        ({"relative_attention": False, "pos_att_type": []}, ["unexpected deberta.encoder.rel_embeddings.weight"]),
        ({"relative_attention": False}, [r"has pos_att_type=\['p2c', 'c2p'\], which is not implemented"]),
        ({"pos_att_type": None}, ["does not say 'pos_att_type'"]),
        ({"legacy": False}, ["missing lm_predictions.lm_head.dense.weight", "unexpected cls.predictions.bias"]),
        ({"conv_kernel_size": 3, "conv_groups": 2}, [r"missing deberta.encoder.conv.conv.weight \[32, 16, 3\]"]),
        (
            {"architectures": ["DebertaV2ForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            [r"missing pooler.dense.weight \[32, 32\]", r"missing classifier.weight \[3, 32\]"],
        ),
        ({"pos_att_type": ["p2p"]}, [r"has pos_att_type=\['p2p'\], which is not implemented"]),
        ({"embedding_size": 16}, ["has embedding_size=16, which is not implemented"]),
    ],
)  # fmt: skip
def test_attributes_change_what_is_expected(tmp_path, changes, messages):
    said = changed(tmp_path, **changes)
    for message in messages:
        assert re.search(message, said), said
    assert ("pos_query_proj" in said) == (changes == {"share_att_key": False})
