import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer import configs
from flaxformer.data.batching import Batches, Bucket, Packed
from flaxformer.data.features import EncoderDecoderFeatures
from flaxformer.decoding import BeamSearch, Greedy
from flaxformer.demo.g2p import dictionary as dictionaries
from flaxformer.demo.g2p import main as demo
from flaxformer.demo.g2p.decode import cross_attention, pronounce
from flaxformer.demo.g2p.task import VOCABULARY, examples, validation_batches
from flaxformer.training.state import initialize
from flaxformer.training.step import make_eval_step, mean_metrics
from tests.demo.g2p.words import tiny_dictionary

TINY = [
    "NUM_ENCODER_LAYERS = 1",
    "NUM_DECODER_LAYERS = 2",
    "NUM_HEADS = 2",
    "HEAD_DIM = 4",
    "EMBED_DIM = 8",
    "MLP_DIM = 8",
]


@pytest.fixture(scope="module")
def model():
    return configs.load("demo/g2p", TINY)


@pytest.fixture(scope="module")
def variables(model):
    batch = next(validation_batches(tiny_dictionary()).epoch())
    return {"params": initialize(model, optax.sgd(0.1), batch)[0].params}


def test_hypotheses_come_in_the_order_of_the_words(model, variables):
    words = ["tacob", "a", "boa", "cab", "o"]
    together = pronounce(model, variables, words, Greedy(), rows=2)
    for word, (hypothesis,) in zip(words, together, strict=True):
        ((alone,),) = pronounce(model, variables, [word, word], Greedy(), rows=2)[:1]
        assert hypothesis.pronunciation == alone.pronunciation
        assert hypothesis.score == pytest.approx(alone.score, rel=1e-4)


def test_beams_come_best_first(model, variables):
    (hypotheses,) = pronounce(model, variables, ["cab"], BeamSearch(num_beams=3))
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert len(hypotheses) == 3 and scores == sorted(scores, reverse=True)


def test_pronouncing_nothing_is_refused(model, variables):
    with pytest.raises(ValueError, match="there are no words to pronounce; expected at least one"):
        pronounce(model, variables, [], Greedy())


def test_cross_attention_is_a_distribution_over_letters(model, variables):
    weights = cross_attention(model, variables, "cab", ("K", "AH", "B"))
    assert weights.shape == (4, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)


def test_packing_does_not_change_the_loss(model, variables):
    some = examples(dictionaries.take_split(tiny_dictionary(), "validation"))
    packed = Batches(some, EncoderDecoderFeatures(), [Bucket((12, 11), rows=4)], Packed())
    padded = Batches(some, EncoderDecoderFeatures(), [Bucket((5, 5), rows=8)])
    eval_step = jax.jit(make_eval_step(model.apply))

    def metrics(source):
        return mean_metrics([eval_step(variables["params"], batch) for batch in source.epoch()])

    assert metrics(packed) == pytest.approx(metrics(padded), rel=1e-5)


def test_the_demonstration_from_training_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dictionaries, "load", tiny_dictionary)
    run = ["TRAIN_STEPS = 2", "WARMUP_STEPS = 1", "task.training_batches.rows = 8"]
    one_shape = ["NUM_DECODER_LAYERS = 1", "task.validation_batches.lengths = ((30, 30),)"]
    bindings = [*TINY, *run, *one_shape]
    arguments = [f"--run_dir={tmp_path / 'run'}", *(f"--gin_bindings={binding}" for binding in bindings)]
    assert demo.main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"per", "wer", "greedy_per", "greedy_wer", "examples", "seconds", "parameters"}
    held_out = dictionaries.take_split(tiny_dictionary(), "test")
    assert metrics["examples"] == len(held_out) and 0 < metrics["per"] and 0 <= metrics["wer"] <= 1
    for name in ("loss.png", "attention.png"):
        assert (tmp_path / "run" / name).read_bytes()[1:4] == b"PNG"
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("PER", "WER", "greedy", "attention.png", "loss.png", "metrics.json"))


def test_run_dir_is_short_for_its_macro():
    parsed = demo.parse(["--run_dir=runs/it's here", "--gin.TRAIN_STEPS=7"])
    configuration = demo.flags.configuration(parsed)
    assert configuration.build("MODEL_DIR") == "runs/it's here"
    assert configuration.build("TRAIN_STEPS") == 7


def test_what_is_refused_is_said_without_a_traceback(capsys):
    assert demo.main(["--gin_file=demo/g3p"]) == 2
    assert "demo/g2p" in capsys.readouterr().err, "the near miss is named"


def test_samples_spread_over_the_alphabet():
    words = {"".join(letters) * 2: () for letters in itertools.product("abcde", repeat=4)}
    chosen = demo.choose_samples(words, count=5)
    assert [word[0] for word in chosen] == list("abcde")
    assert len(demo.choose_samples({"a": (), "b": ()}, count=5)) == 2


@pytest.mark.parametrize("name", ["demo/g2p", "demo/g2p_full"])
def test_shipped_configurations_fit_the_task(name):
    model = configs.load(name)
    tokens = jnp.ones((1, 4), jnp.int32)
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    )
    assert logits.shape[-1] == VOCABULARY.vocab_size
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) <= 10_000_000
