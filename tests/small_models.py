"""Random models of every layout that refquant names, small enough to run in a blink."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
LAYOUTS = {
    "llama": ("llama", {}),
    "llama-gqa": ("llama", {**GROUPED, "attention_bias": True}),
    "mistral": ("mistral", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED),
    "gemma": ("gemma", GROUPED),
    "gemma2": ("gemma2", {**GROUPED, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**GROUPED, "sliding_window": 8}),
    "phi3": ("phi3", {}),
    "phi3-gqa": ("phi3", GROUPED),
    "gpt2": ("gpt2", {}),
}


def make(layout: str, seed: int = 0):
    """Build a model in evaluation mode whose norms, biases and channels are all uneven, so that no mistake hides."""
    kind, changes = LAYOUTS[layout]
    settings = SHAPE | changes
    if kind == "gpt2":
        settings = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
        settings |= {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if "bias" in name else 1.0))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.08)
    return model.eval()


def token_windows(windows: int = 4, context: int = 24, seed: int = 0):
    """Random token ids [windows, context] of the models above."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 128, (windows, context), generator=generator).numpy()
