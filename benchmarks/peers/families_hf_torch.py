"""Greedy generation with a folder in transformers, on PyTorch. Its interpreter needs: pip install torch transformers"""

import os
import pathlib

import numpy as np
import torch
import transformers
from serve import serve, settings


def make_tasks():
    """The program `greedy`, and the tokens that it writes."""
    asked = settings()
    torch.set_num_threads(asked.get("threads") or len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(asked["folder"])
    model = getattr(transformers, config.architectures[0]).from_pretrained(asked["folder"]).eval()
    source = torch.tensor(np.load(pathlib.Path(asked["folder"]) / "tokens.npy"))
    prompt = 1 if config.is_encoder_decoder else source.shape[1]

    def greedy():
        with torch.inference_mode():
            return model.generate(
                source,
                attention_mask=torch.ones_like(source),
                min_new_tokens=asked["new"],
                max_new_tokens=asked["new"],
                num_beams=1,
                do_sample=False,
            )

    count = sum(parameter.numel() for parameter in model.parameters())
    return {"greedy": (greedy, {"tokens": greedy()[:, prompt:].tolist()})}, count


if __name__ == "__main__":
    serve("hf_torch", ["torch", "transformers"], make_tasks)
