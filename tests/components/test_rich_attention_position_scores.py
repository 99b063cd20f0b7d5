import pytest

from flaxformer.components.rich_attention_position_scores import RichAttentionApi


def test_the_interface_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        RichAttentionApi()


def test_a_subclass_is_recognised():
    class Scores(RichAttentionApi):
        def __call__(self, q_inputs, k_inputs, bidirectional=True, is_cross_attention=False):
            return q_inputs

    assert Scores()(1, 2) == 1
