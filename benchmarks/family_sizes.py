"""Configurations of one modest size for the families that write text: what `families` makes folders from."""

from __future__ import annotations

from typing import Any

# Ids that nothing ends with or pads with by chance.
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 0, "decoder_start_token_id": 0}
_ALL = {"vocab_size": 16384, **_IDS}
_LLAMA = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
_NEOX = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}  # fmt: skip
_T5 = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
_BART = {
    "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "max_position_embeddings": 1024,
}  # fmt: skip
_WIDE = {"head_dim": 64, "sliding_window": 64}
_T5GEMMA = {**_ALL, **_LLAMA, **_WIDE, "model_type": "t5_gemma_module"}

_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 1024}),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "sliding_window": 64}),
    "mixtral": ("MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4, "intermediate_size": 704}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 64}),
    "gemma": ("GemmaForCausalLM", {**_LLAMA, "head_dim": 64}),
    "gemma2": ("Gemma2ForCausalLM", {**_LLAMA, **_WIDE}),
    "gemma3_text": ("Gemma3ForCausalLM", {**_LLAMA, **_WIDE}),
    "gpt_neox": ("GPTNeoXForCausalLM", _NEOX),
    "phi": ("PhiForCausalLM", _NEOX),
    "falcon": ("FalconForCausalLM", {k: v for k, v in _NEOX.items() if k != "intermediate_size"}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 512, "n_layer": 6, "n_head": 8}),
    "opt": ("OPTForCausalLM", {
        "hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
        "word_embed_proj_dim": 512, "max_position_embeddings": 1024,
    }),
}  # fmt: skip
_ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", {**_T5, "tie_word_embeddings": True}),
    "mt5": ("MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", {
        **_T5, "num_experts": 4, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3,
        "tie_word_embeddings": True,
    }),
    "longt5": ("LongT5ForConditionalGeneration", {**_T5, "local_radius": 15, "encoder_attention_type": "local"}),
    "t5gemma": ("T5GemmaForConditionalGeneration", {
        "encoder": {**_T5GEMMA, "is_decoder": False},
        "decoder": {**_T5GEMMA, "is_decoder": True, "cross_attention_hidden_size": 512},
    }),
    "bart": ("BartForConditionalGeneration", _BART),
    "mbart": ("MBartForConditionalGeneration", _BART),
    "pegasus": ("PegasusForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", _BART),
    "led": ("LEDForConditionalGeneration", {
        **{k: v for k, v in _BART.items() if k != "max_position_embeddings"}, "attention_window": 32,
        "max_encoder_position_embeddings": 1024, "max_decoder_position_embeddings": 1024,
    }),
}  # fmt: skip

FAMILIES = (*_DECODERS, *_ENCODER_DECODERS)


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: for a family that is not among `FAMILIES`.
    """
    sizes = {**_DECODERS, **_ENCODER_DECODERS}
    if family not in sizes:
        raise ValueError(f"--only has the family {family!r}; expected some of {', '.join(FAMILIES)}.")
    architecture, attributes = sizes[family]
    named = {"model_type": family, "architectures": [architecture], "is_encoder_decoder": family in _ENCODER_DECODERS}
    return {**_ALL, **attributes, **named, **changes}
