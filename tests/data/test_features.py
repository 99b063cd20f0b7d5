import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.data.features import DecoderOnlyFeatures, EncoderDecoderFeatures, shift_right
from flaxformer.data.packing import pack
from tests.data.examples import as_tuples, examples


def ids(*values):
    return np.array(values, np.int32)


PAIR = {"inputs": ids(9, 4, 6, 1), "targets": ids(3, 9, 1)}
OTHER = {"inputs": ids(8, 1), "targets": ids(5, 1)}


def test_encoder_decoder_padded_row():
    batch = EncoderDecoderFeatures()([[PAIR], []], lengths=(5, 4))
    expected = {
        "encoder_input_tokens": [9, 4, 6, 1, 0],
        "decoder_input_tokens": [0, 3, 9, 1],
        "decoder_target_tokens": [3, 9, 1, 0],
        "decoder_loss_weights": [1, 1, 1, 0],
    }
    assert {name: array[0].tolist() for name, array in batch.items()} == expected
    assert all(not array[1].any() for name, array in batch.items()), "an empty row is all padding"
    assert {name: array.dtype for name, array in batch.items() if array.dtype != np.int32} == {
        "decoder_loss_weights": np.float32
    }


def test_encoder_decoder_packed_row():
    batch = EncoderDecoderFeatures()([[PAIR, OTHER]], lengths=(7, 6), packed=True)
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "encoder_input_tokens": [9, 4, 6, 1, 8, 1, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 0],
        "encoder_positions": [0, 1, 2, 3, 0, 1, 0],
        "decoder_input_tokens": [0, 3, 9, 0, 5, 0],
        "decoder_target_tokens": [3, 9, 1, 5, 1, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 0, 1, 0],
    }


def test_decoder_only_packed_row():
    batch = DecoderOnlyFeatures()([[PAIR, OTHER]], lengths=(12,), packed=True)
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "decoder_input_tokens": [0, 9, 4, 6, 1, 3, 9, 0, 8, 1, 5, 0],
        "decoder_target_tokens": [9, 4, 6, 1, 3, 9, 1, 8, 1, 5, 1, 0],
        "decoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0],
        "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0],
    }


def test_decoder_only_without_inputs_is_a_language_model():
    batch = DecoderOnlyFeatures()([[{"targets": ids(3, 9, 1)}]], lengths=(4,))
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 0]]
    assert batch["decoder_causal_attention"].tolist() == [[1, 0, 0, 0]], "one position sees itself, which is causal"


def test_loss_on_inputs_counts_every_token():
    batch = DecoderOnlyFeatures(loss_on_inputs=True)([[PAIR]], lengths=(9,))
    assert batch["decoder_loss_weights"].tolist() == [[1] * 7 + [0] * 2]


def test_bos_id_starts_every_segment():
    shifted = shift_right(ids(5, 6, 7, 0)[None], ids(1, 2, 2, 0)[None], bos_id=99)
    assert shifted.tolist() == [[99, 99, 6, 99]]


@pytest.mark.parametrize("converter", [EncoderDecoderFeatures(), DecoderOnlyFeatures()])
@settings(max_examples=40, deadline=None)
@given(data=examples(), extra=st.integers(0, 4))
def test_a_packed_segment_equals_its_example_alone(converter, data, extra):
    axes = len(converter.sizes(data[0]))
    lengths = (12 + extra,) * axes
    for row in pack(data, converter.sizes, lengths, open_rows=4):
        packed = converter([row], lengths, packed=True)
        for segment, example in enumerate(row, start=1):
            alone = converter([[example]], converter.sizes(example))
            for name, expected in alone.items():
                side = name.split("_")[0]
                part = packed[name][packed[f"{side}_segment_ids"] == segment]
                np.testing.assert_array_equal(part, expected[0], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(data=examples())
def test_packed_batches_hold_every_example_once(data):
    converter, lengths, found = EncoderDecoderFeatures(), (9, 9), []
    for row in pack(data, converter.sizes, lengths):
        batch = converter([row], lengths, packed=True)
        for segment in range(1, batch["encoder_segment_ids"].max() + 1):
            found.append(
                {
                    "inputs": batch["encoder_input_tokens"][batch["encoder_segment_ids"] == segment],
                    "targets": batch["decoder_target_tokens"][batch["decoder_segment_ids"] == segment],
                }
            )
    assert as_tuples(found) == as_tuples(data)


def test_trimming_is_from_the_end():
    trimmed = EncoderDecoderFeatures().trim(PAIR, (2, 1))
    assert trimmed["inputs"].tolist() == [9, 4] and trimmed["targets"].tolist() == [3]
    trimmed = DecoderOnlyFeatures().trim(PAIR, (6,))
    assert trimmed["inputs"].tolist() == [9, 4, 6, 1] and trimmed["targets"].tolist() == [3, 9]


def test_trimming_keeps_room_for_a_target():
    with pytest.raises(ValueError, match="inputs have 4 tokens and the row 4; expected room for at least one target"):
        DecoderOnlyFeatures().trim(PAIR, (4,))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"targets": ids(1)}, r"the example has \['targets'\]; expected the key 'inputs'"),
        ({"inputs": ids(), "targets": ids(1)}, r"inputs has shape \(0,\) and dtype int32; expected a 1-D array"),
        ({"inputs": ids(2), "targets": ids(1)[None]}, r"targets has shape \(1, 1\)"),
        ({"inputs": np.array([0.5]), "targets": ids(1)}, "inputs has .* dtype float64"),
        ({"inputs": ids(5, 0), "targets": ids(1)}, "inputs holds the id 0; expected ids from 1 on"),
        ({"inputs": ids(5), "targets": ids(7)}, "targets holds the unknown id 7; expected ids below vocab_size = 7"),
    ],
)
def test_examples_that_no_model_can_read_are_refused(example, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoderFeatures(vocab_size=7).sizes(example)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="row 1 holds 4 tokens of inputs; expected at most 3"):
        EncoderDecoderFeatures()([[OTHER], [PAIR]], lengths=(3, 3))


def test_two_examples_need_packing():
    with pytest.raises(ValueError, match="a row holds 2 examples and packed is False"):
        EncoderDecoderFeatures()([[OTHER, PAIR]], lengths=(9, 9))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"the batch of 2 row\(s\) holds no example"):
        DecoderOnlyFeatures()([[], []], lengths=(9,))


@pytest.mark.parametrize(
    ("converter", "lengths"),
    [(EncoderDecoderFeatures(), (9,)), (DecoderOnlyFeatures(), (9, 9)), (DecoderOnlyFeatures(), (0,))],
)
def test_wrong_lengths_are_refused(converter, lengths):
    with pytest.raises(ValueError, match=r"lengths is .*; expected \d positive number"):
        converter([[PAIR]], lengths=lengths)
