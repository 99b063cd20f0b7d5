"""Hugging Face's T5 on PyTorch. Its interpreter needs: pip install torch transformers"""

import os

import torch
import transformers
from serve import serve, settings, tokens
from transformers import T5Config, T5ForConditionalGeneration


def make_tasks():
    """Forward pass, and training step: mean cross entropy, gradient, AdamW."""
    asked = settings()
    torch.set_num_threads(asked.get("threads") or len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    config = T5Config(**asked["shape"], tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0)
    config.tie_word_embeddings = False  # transformers 5 ties whatever its configuration is told,
    model = T5ForConditionalGeneration(config)
    model.set_input_embeddings(model.shared)  # and then lets encoder and decoder have tables of their own
    vocabulary = asked["shape"]["vocab_size"]
    source = torch.tensor(tokens(asked["batch"], asked["source"], vocabulary, 0))
    target = torch.tensor(tokens(asked["batch"], asked["target"], vocabulary, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def forward():
        model.eval()
        with torch.inference_mode():
            return model(input_ids=source, decoder_input_ids=target).logits

    def train():
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=source, labels=target).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    tasks = {"forward": (forward, {}), "train": (train, {})}
    count = sum(parameter.numel() for parameter in model.parameters())
    return {name: tasks[name] for name in asked["programs"]}, count


if __name__ == "__main__":
    serve("hf_torch", ["torch", "transformers"], make_tasks)
