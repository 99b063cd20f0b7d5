"""Recorded generation: tokens exactly, scores to 1e-4."""

import json

import numpy as np

from flaxformer.decoding import generate
from flaxformer.decoding.constraints import Banned, ForcedEnd, MinLength, NoRepeatNGram, RepetitionPenalty
from flaxformer.decoding.strategies.beam import BeamSearch
from flaxformer.decoding.strategies.beam_rules import LengthPenalty
from flaxformer.decoding.strategies.greedy import Greedy
from flaxformer.weights.pretrained import load_pretrained
from tests.parity.recorded import FIXTURES


def check(family, wanted=lambda name: True):
    """Compares the cases whose name is wanted; returns how many, and the largest error of a score."""
    folder = FIXTURES / family
    recorded = json.loads((folder / "generate.json").read_text())
    model, variables = load_pretrained(folder)
    if (flags := recorded["inputs"].get("global_attention_mask")) is not None:
        model = model.clone(flag_tokens=lambda tokens: np.asarray(flags) > 0)
    cases = [case for case in recorded["cases"] if wanted(case["name"])]
    return len(cases), max([_compare(model, variables, folder, recorded, case) for case in cases], default=0.0)


def _compare(model, variables, folder, recorded, case):
    settings, eos = dict(case["settings"]), recorded["eos_token_id"]
    start = recorded.get("decoder_start_token_id")
    inputs, prompt = _inputs(folder, recorded["inputs"], start)
    generated = generate(
        model,
        variables,
        inputs,
        strategy=_strategy(settings),
        max_new_tokens=settings["max_new_tokens"],
        eos_id=eos,
        pad_id=recorded["pad_token_id"],
        bos_id=start,
        constraints=_constraints(settings, recorded),
    )
    theirs = [cut(row[prompt:], eos) for row in case["sequences"]]
    lengths = np.asarray(generated.lengths).reshape(-1)
    ours = [
        row[:n].tolist() for row, n in zip(np.asarray(generated.tokens).reshape(len(lengths), -1), lengths, strict=True)
    ]
    assert ours == theirs, (case["name"], ours, theirs)
    scores = case.get("sequences_scores")
    if scores is None:
        if len(settings) > 3:
            return 0.0  # what a constraint changes, the log-probabilities of the raw logits do not tell
        scores = [sum(row[: len(tokens)]) for row, tokens in zip(case["step_logprobs"], theirs, strict=True)]
    error = np.abs(np.asarray(generated.scores).reshape(-1) - scores) / (1 + np.abs(scores))
    assert error.max() <= 1e-4, (case["name"], error)
    return float(error.max())


def _inputs(folder, given, start):
    """What `generate` is given, and how many tokens of their rows stand in front of those that it writes."""
    if "input_features" in given:
        with np.load(folder / "io.npz") as file:
            spectrograms = np.moveaxis(file[given["input_features"].partition(":")[2]], 1, -1)
        prompts = np.asarray(given["decoder_input_ids"], np.int32)
        return {"encoder_input_tokens": spectrograms, "decoder_prompt_tokens": prompts[:, 1:]}, prompts.shape[1]
    ids, valid = (np.asarray(given[name], np.int32) for name in ("input_ids", "attention_mask"))
    if start is None:
        return {"decoder_prompt_tokens": ids, "valid": valid > 0}, ids.shape[1]
    return {"encoder_input_tokens": ids}, 1


def cut(tokens, eos):
    """The tokens up to the first end, that included."""
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def _strategy(settings):
    if settings["num_beams"] == 1:
        return Greedy()
    rule = LengthPenalty(settings["length_penalty"], settings["early_stopping"])
    return BeamSearch(settings["num_beams"], num_return=settings["num_return_sequences"], rule=rule)


def _constraints(settings, recorded):
    made = []
    if "repetition_penalty" in settings:
        made.append(RepetitionPenalty(settings["repetition_penalty"]))
    if "no_repeat_ngram_size" in settings:
        made.append(NoRepeatNGram(settings["no_repeat_ngram_size"]))
    if "bad_words_ids" in settings:
        made.append(Banned(tuple(word for (word,) in settings["bad_words_ids"])))
    if "min_new_tokens" in settings:
        made.append(MinLength(settings["min_new_tokens"]))
    if "forced_eos_token_id" in settings:
        made.append(ForcedEnd())
    if "suppress_tokens" in settings:
        made.append(Banned(tuple(settings["suppress_tokens"])))
        made.append(Banned(tuple(settings["begin_suppress_tokens"]), first=1))
    return made
