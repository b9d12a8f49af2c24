"""Train the model: plain PyTorch, one file. `python -m refquant.models.tiny_recipe.train TOKENS OUT --minutes 10`

The architecture is Llama's (RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embedding), written out
below with Hugging Face's parameter names, so the weights saved here load into `LlamaForCausalLM` as they are.

TOKENS holds training.u16 and validation.u16 (from `encode`). OUT receives model.safetensors (bfloat16, the step with
the lowest validation loss), history.json and checkpoint.pt. A run that was stopped goes on with `--resume` and gives
the same weights as one that was not stopped, up to the order of a GPU's sums. On a machine without a GPU it runs on
the CPU in float32.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Sizes of the model, by the names that config.json of a Llama model uses."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class Norm(nn.Module):
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight, computed in float32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):  # noqa: D102
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


def rotary(c: Config, device):
    """Cos and sin, float32 [positions, head_dim]: position times frequency, both halves of a head alike."""
    frequency = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, device=device).float() / c.head_dim)
    angle = torch.outer(torch.arange(c.max_position_embeddings, device=device).float(), frequency)
    return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def rotate(x, cos, sin):
    """Turn the pairs (i, i + head_dim/2) of x [batch, heads, positions, head_dim] by their angles."""
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; each key-value head serves several query heads."""

    def __init__(self, c):
        super().__init__()
        self.c, kv = c, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):  # noqa: D102
        m, t, _ = x.shape
        q, k, v = (
            p(x).view(m, t, -1, self.c.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        share = self.c.num_attention_heads // self.c.num_key_value_heads
        k, v = rotate(k, cos, sin).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(m, t, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):  # noqa: D102
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, cos, sin):  # noqa: D102
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model; `forward` gives logits [batch, positions, vocabulary]."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, self.model = c, nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.model.norm = Norm(c.hidden_size, c.rms_norm_eps)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the two matrices that write into the residual stream start smaller, as in GPT-2
                shrink = (
                    math.sqrt(2 * c.num_hidden_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                )
                nn.init.normal_(p, std=0.02 / shrink)

    def forward(self, ids):  # noqa: D102
        cos, sin = rotary(self.c, ids.device)
        cos, sin = cos[: ids.shape[1]], sin[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def batches(tokens: torch.Tensor, context: int, size: int, seed: int, first: int):
    """Yield ids int64 [size, context + 1] for step `first`, `first` + 1, ...

    Every epoch cuts the stream at another phase and visits its windows in another order; both follow from the seed
    and the epoch's number, so a resumed run sees what it would have seen.
    """
    per_epoch = (len(tokens) - context - 1) // context // size
    window = torch.arange(context + 1, device=tokens.device)
    step = first
    while True:
        epoch, at = divmod(step, per_epoch)
        g = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        phase = int(torch.randint(context, (1,), generator=g))
        order = torch.randperm((len(tokens) - phase - 1) // context, generator=g)
        for i in range(at, per_epoch):
            start = order[i * size : (i + 1) * size].to(tokens.device) * context + phase
            yield tokens[start[:, None] + window].long()
            step += 1


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float = 0.0) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak.

    With `decay`, a fraction: the peak is held instead, and the last `decay` of the steps go linearly to nothing.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if decay:
        return peak * min(1.0, (steps - step) / (decay * steps))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))))


def loss_of(model, ids):
    """Mean cross-entropy, in nats, of each token given those before it in its window."""
    logits = model(ids[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validate(model, tokens, context, cast) -> float:
    """Mean loss over windows of the validation tokens that do not overlap."""
    windows = tokens[: len(tokens) // (context + 1) * (context + 1)].view(-1, context + 1).long()
    with cast:
        total = sum(loss_of(model, part) * len(part) for part in windows.split(64))
    return float(total) / len(windows)


def save_weights(model: Llama, path: Path):
    """Write the weights in bfloat16 under Hugging Face's names; the output layer is the embedding, stored once."""
    from safetensors.torch import save_file

    state = {k: v.to(torch.bfloat16).contiguous().cpu() for k, v in model.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt"})
    part.replace(path)


def read_tokens(path: Path, device) -> torch.Tensor:
    """Token ids of a .u16 file, as int32 on the device."""
    return torch.from_numpy(np.fromfile(path, np.uint16).astype(np.int32)).to(device)


def train(tokens: Path, out: Path, config: Config, a) -> dict:
    """Train until a.steps (or a.minutes) are over or a.stop_after seconds have passed; return the history."""
    began = time.time()
    device = "cuda" if torch.cuda.is_available() and not a.cpu else "cpu"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    model = Llama(config).to(device)
    if a.init:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(a.init))
    decay = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": a.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.peak, betas=(0.9, 0.95), eps=1e-8, fused=device == "cuda")
    done, steps, best, history = 0, a.steps, math.inf, {"config": asdict(config), "train": [], "validation": []}
    if a.resume and (out / "checkpoint.pt").exists():
        saved = torch.load(out / "checkpoint.pt", map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, steps, best, history = saved["done"], saved["steps"], saved["best"], saved["history"]
    history.setdefault("settings", {k: str(v) for k, v in vars(a).items()})
    history["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"

    earlier = history.get("seconds", 0.0)

    def checkpoint():
        history["seconds"], history["steps"] = earlier + time.time() - began, steps
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "steps": steps}
        torch.save(saved | {"best": best, "history": history}, out / "checkpoint.part")
        (out / "checkpoint.part").replace(out / "checkpoint.pt")
        (out / "history.json").write_text(json.dumps(history))

    compiled = torch.compile(loss_of) if device == "cuda" else loss_of
    cast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    data, held = read_tokens(tokens / "training.u16", device), read_tokens(tokens / "validation.u16", device)
    stream = batches(data, config.max_position_embeddings, a.batch, a.seed, done)
    shown, tick, measured, seen = [], time.time(), 0, 0
    while steps is None or done < steps:
        if steps is None and measured == 60:  # past compilation: how many steps fit?
            torch.cuda.synchronize() if device == "cuda" else None
            steps = done + int((a.minutes * 60 - (time.time() - began)) / ((time.time() - tick) / 40) * 0.97)
            print(f"{steps} steps fit", flush=True)
        elif steps is None and measured == 20:
            torch.cuda.synchronize() if device == "cuda" else None
            tick = time.time()
        rate = learning_rate(done, steps or 10**6, a.peak, a.warmup, a.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with cast:
            loss = compiled(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shown.append(loss.detach())
        done, measured = done + 1, measured + 1
        last = done == steps
        stop = done == a.stop_at or (a.stop_after and time.time() - began > a.stop_after)
        if done % a.every == 0 or last or stop:
            seen = done * a.batch * config.max_position_embeddings
            history["train"].append([done, seen, float(torch.stack(shown).mean()), rate])
            shown.clear()
        if done % (a.every * 10) == 0 or last or stop:
            value = validate(model, held, config.max_position_embeddings, cast)
            history["validation"].append([done, seen, value])
            speed = measured * a.batch * config.max_position_embeddings / (time.time() - tick)
            print(f"step {done}/{steps} tokens {seen / 1e6:.0f}M epoch {seen / len(data):.1f} train "
                  f"{history['train'][-1][2]:.4f} validation {value:.4f} rate {rate:.2e} {speed / 1e6:.2f}M tokens/s",
                  flush=True)  # fmt: skip
            if value < best:
                best = value
                save_weights(model, out / "model.safetensors")
                history["best"] = [done, value]
            if done % (a.every * 50) == 0 or last or stop:
                checkpoint()
        if stop:
            break
    checkpoint()
    return history


def arguments(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("tokens", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, help="how many steps; without it, as many as fit into --minutes")
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--stop-after", type=float, default=0, help="seconds after which to save and stop; see --resume")
    p.add_argument("--stop-at", type=int, help="the step after which to save and stop")
    p.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt where it exists")
    p.add_argument("--batch", type=int, default=512, help="windows a step")
    p.add_argument("--peak", type=float, default=4e-3, help="highest learning rate")
    p.add_argument("--warmup", type=int, default=200, help="steps")
    p.add_argument(
        "--decay", type=float, default=0.0, help="hold the peak, then fall linearly over this part of the run"
    )
    p.add_argument("--init", type=Path, help="weights to start from, a model.safetensors of an earlier run")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--every", type=int, default=20, help="steps between points of the curve")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cpu", action="store_true")
    for name, value in asdict(Config()).items():
        p.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return p.parse_args(argv)


def main(argv=None):
    """Command line."""
    a = arguments(argv)
    config = Config(**{name: getattr(a, name) for name in asdict(Config())})
    train(a.tokens, a.out, config, a)


if __name__ == "__main__":
    main()
