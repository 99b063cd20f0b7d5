import flax.linen as nn
import jax.numpy as jnp
import pytest

from benchmarks.programs import Subject, Workload, prepare, token_shapes

WORK = Workload(batch=2, source=4, target=3)


class Reader(nn.Module):
    @nn.compact
    def __call__(self, encoder_input_tokens, *, enable_dropout=True):
        return nn.Dense(5, use_bias=False)(nn.one_hot(encoder_input_tokens, 7))


class Writer(nn.Module):
    @nn.compact
    def __call__(self, decoder_input_tokens, decoder_target_tokens, *, enable_dropout=True):
        return nn.Embed(256, 256)(decoder_input_tokens)


class Painter(nn.Module):
    def __call__(self, image):
        return image


def test_models_are_called_with_the_tokens_they_take():
    assert token_shapes(Reader(), WORK) == {"encoder_input_tokens": (2, 4)}
    assert token_shapes(Writer(), WORK) == {"decoder_input_tokens": (2, 3), "decoder_target_tokens": (2, 3)}


def test_an_encoder_minimises_the_mean_square_of_its_output():
    subject = Subject(Reader(), WORK)
    params, kernel = subject.random_params(), subject.variables["params"]["Dense_0"]["kernel"]
    assert subject.objective == "mean square of the output"
    assert subject.loss(params, subject.batch) == jnp.mean(subject.forward(params, subject.batch) ** 2)
    assert subject.forward_flops == 2 * 2 * 4 * kernel.size
    assert (subject.tokens, subject.parameters) == (8, 35)


def test_a_language_model_counts_its_targets():
    subject = Subject(Writer(), WORK)
    assert (subject.objective, subject.tokens) == ("cross entropy", 6)


def test_every_step_goes_on_from_the_one_before():
    subject = Subject(Reader(), WORK)
    ready = prepare(subject, "train")
    first, second = ready.task(), ready.task()
    assert int(second[0].step) == 3
    assert float(second[1]) < float(first[1])


def test_a_model_that_reads_no_tokens_is_refused():
    with pytest.raises(ValueError, match="Painter is called with image; expected a model over tokens"):
        token_shapes(Painter(), WORK)
