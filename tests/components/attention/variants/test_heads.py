"""What attention functions share."""

import numpy as np

from flaxformer.components.attention.attention_functions import (
    dot_product_attention,
    dot_product_attention_multiquery,
    dot_product_attention_weights,
)
from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from tests.components.attention.variants.test_contract import qkv


def test_a_single_key_head_is_given_an_axis():
    query, key, value = qkv(4, 1)
    for given in ((query, key, value), (query, key[:, :, 0], value[:, :, 0])):
        assert [x.shape for x in with_head_axis(*given)] == [(2, 6, 4, 4), (2, 6, 1, 4), (2, 6, 1, 4)]


def test_unit_values_read_the_weights_off_any_function():
    query, key, _ = qkv(4, 1)
    expected = dot_product_attention_weights(query, key, mask=Causal())
    for function, keys in ((dot_product_attention, key), (dot_product_attention_multiquery, key[:, :, 0])):
        np.testing.assert_allclose(weights_of(function, query, keys, mask=Causal()), expected, atol=1e-6)
