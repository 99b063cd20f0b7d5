"""Generation with Hugging Face's T5 on PyTorch. Its interpreter needs: pip install torch transformers"""

import os

import torch
import transformers
from serve import serve, settings, tokens
from transformers import T5Config, T5ForConditionalGeneration


def make_tasks():
    """One task per case: `beams`, `batch`, `source` and `new` tokens."""
    asked = settings()
    torch.set_num_threads(asked.get("threads") or len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    config = T5Config(**asked["shape"], tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0)
    config.tie_word_embeddings = False  # transformers 5 ties whatever its configuration is told,
    model = T5ForConditionalGeneration(config).eval()
    model.set_input_embeddings(model.shared)  # and then lets encoder and decoder have tables of their own
    tasks = {}
    for case in asked["cases"]:
        source = torch.tensor(tokens(case["batch"], case["source"], asked["shape"]["vocab_size"], 0))

        def generate(source=source, case=case):
            with torch.inference_mode():
                return model.generate(
                    source,
                    min_new_tokens=case["new"],
                    max_new_tokens=case["new"],
                    num_beams=case["beams"],
                    do_sample=False,
                )

        tasks[case["name"]] = (generate, {})
    return tasks, sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    serve("hf_torch", ["torch", "transformers"], make_tasks)
