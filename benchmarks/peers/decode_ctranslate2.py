"""Generation with CTranslate2, float32 and int8. Its interpreter needs: pip install ctranslate2 torch transformers

A random T5 of the shape asked for is written to a folder in the temporary files and converted there.
"""

import os
import shutil
import tempfile

import ctranslate2
import transformers
from ctranslate2.converters import TransformersConverter
from serve import serve, settings, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

KINDS = ("float32", "int8")


def save_model(shape, folder):
    """Writes a random model with a vocabulary of `t3`, `t4`, ...; returns the number of its parameters.

    transformers 5 ties the output table to the embedding, whatever it is told. It counts as one of its own here: a step
    multiplies with it either way.
    """
    transformers.logging.set_verbosity_error()
    config = T5Config(**shape, tie_word_embeddings=False, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(f"t{i}", -1.0) for i in range(3, shape["vocab_size"])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    tied = model.lm_head.weight is model.shared.weight
    return sum(parameter.numel() for parameter in model.parameters()) + tied * model.shared.weight.numel()


def make_tasks():
    """One task per kind and case, named KIND/CASE."""
    asked = settings()
    threads = asked.get("threads") or len(os.sched_getaffinity(0))
    work = tempfile.mkdtemp()
    tasks = {}
    try:
        parameters = save_model(asked["shape"], os.path.join(work, "t5"))
        for kind in KINDS:
            folder = os.path.join(work, kind)
            TransformersConverter(os.path.join(work, "t5")).convert(folder, quantization=kind)
            engine = ctranslate2.Translator(folder, device="cpu", intra_threads=threads, compute_type=kind)
            for case in asked["cases"]:
                ids = tokens(case["batch"], case["source"], asked["shape"]["vocab_size"], 0)
                source = [[f"t{max(i, 3)}" for i in row] for row in ids]

                def translate(engine=engine, source=source, case=case):
                    lengths = {"min_decoding_length": case["new"], "max_decoding_length": case["new"]}
                    return engine.translate_batch(source, beam_size=case["beams"], **lengths)

                tasks[f"{kind}/{case['name']}"] = (translate, {})
    finally:
        shutil.rmtree(work)
    return tasks, parameters


if __name__ == "__main__":
    serve("ctranslate2", ["ctranslate2", "transformers"], make_tasks)
