"""The T5 encoder learns which noun is which and where, before any picture is learnt from it.

An encoder that learns together with the pictures stays a bag of words: which of two objects stands where hardly
changes the loss. Here every token of a noun phrase is taught its subject, its color and its place by linear heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from attnctrl.embedded import text, token_facts
from attnctrl.embedded.token_facts import FACTS


def one_sided(encoder: T5EncoderModel, strength: float = 2.0) -> None:
    """Start the heads' position bias one-sided: two heads see what stands before a token, two what stands after."""
    bias = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    later = len(bias) // 2  # T5's buckets of keys after the query come second
    with torch.no_grad():
        for head in range(bias.shape[1]):
            weak = slice(later + 1, None) if head % 2 == 0 else slice(1, later)
            bias[weak, head] = -strength / (1 + head // 2)


def taught_t5(tokenizer: T5Tokenizer, steps: int = 1000, seed: int = 0, batch: int = 96) -> T5EncoderModel:
    """A fresh encoder, taught; the same for the same seed, whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = text.t5_encoder(tokenizer)
        heads = nn.ModuleDict({name: nn.Linear(encoder.config.d_model, len(kinds)) for name, kinds in FACTS.items()})
    with torch.no_grad():
        encoder.shared.weight.copy_(0.25 * torch.randn(encoder.shared.weight.shape, generator=generator))
    one_sided(encoder)
    ids, labels, _ = token_facts.encode(tokenizer, token_facts.scenes(min(24_000, batch * steps), seed))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(len(ids), (batch,), generator=generator)
        states = encoder(ids[rows])[0]
        losses = [
            nn.functional.cross_entropy(heads[name](states).flatten(0, 1), labels[name][rows].flatten())
            for name in FACTS
        ]
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return encoder


@torch.no_grad()
def place_read(encoder: T5EncoderModel, tokenizer: T5Tokenizer, count: int = 3000, seed: int = 7) -> dict[str, float]:
    """The gate: how well a linear probe reads place and subject from a subject's own last token, on pairs kept out.

    `shuffled` is the root mean square by which the states change when the caption's tokens are shuffled.
    """
    read = {}
    for name in ("place", "subject"):
        known, unknown = (_own_tokens(encoder, tokenizer, count, seed + kept, name, bool(kept)) for kept in (0, 1))
        kinds = nn.functional.one_hot(known[1], len(FACTS[name])).float()
        inputs = torch.cat([known[0], torch.ones(len(known[0]), 1)], 1)
        ridge = inputs.T @ inputs + 1e-2 * len(inputs) * torch.eye(inputs.shape[1]) * inputs.square().mean()
        probe = torch.linalg.solve(ridge, inputs.T @ kinds)
        guess = (torch.cat([unknown[0], torch.ones(len(unknown[0]), 1)], 1) @ probe).argmax(1)
        read[name] = float((guess == unknown[1]).float().mean())
    ids, _, _ = token_facts.encode(tokenizer, token_facts.scenes(200, seed))
    states = encoder(ids)[0]
    real = (ids != tokenizer.pad_token_id).sum(1)
    generator, gaps = torch.Generator().manual_seed(seed), []
    for row, length in enumerate(real.tolist()):
        order = torch.cat([torch.randperm(length - 1, generator=generator), torch.arange(length - 1, ids.shape[1])])
        gaps.append((encoder(ids[row : row + 1, order])[0][0] - states[row, order])[: length - 1].square().mean())
    return {**read, "shuffled": float(torch.stack(gaps).mean().sqrt())}


def _own_tokens(
    encoder: T5EncoderModel, tokenizer: T5Tokenizer, count: int, seed: int, name: str, kept: bool
) -> tuple[Tensor, Tensor]:
    """States [m, width] at the last token of each object, and the fact there [m]."""
    ids, labels, last = token_facts.encode(tokenizer, token_facts.scenes(count, seed, kept=kept))
    states = torch.cat([encoder(part)[0] for part in ids.split(500)])
    row, number = (last >= 0).nonzero(as_tuple=True)
    place = last[row, number]
    return states[row, place], labels[name][row, place]
