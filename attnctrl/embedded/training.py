"""Flow-matching training of tiny-flux on CPU: resumable, by wall-clock, with logs and sample sheets.

x_t = (1 - s) x_0 + s e, target e - x_0 (Lipman et al., 2023; Esser et al., 2024, with a logit-normal s).
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from attnctrl.embedded import dataset
from attnctrl.embedded.latents import CHANNELS, PATCH, PatchCode, pack, pixels, to_uint8, unpack
from attnctrl.embedded.model import TinyFlux, Tokens, image_ids
from attnctrl.embedded.muon import Muon, split
from attnctrl.embedded.scenes import RELATIONS
from attnctrl.embedded.sheet import save_grid
from attnctrl.embedded.text_training import teach

PROMPTS = (
    "a fox, watercolor",
    "a butterfly, neon sign",
    "a red car, flat icon",
    "a turtle, 3d render",
    "a house, line art",
    "an owl, comic",
    "a rose, sticker",
    "a guitar, pixel art",
    "a mushroom, paper cutout",
    "a rocket, blueprint",
    "a strawberry, pencil sketch",
    "a panda, pop art",
    "a fox left of a mushroom, sticker",
    "a blue cat on a beach, 3d render",
    "a penguin on snow, watercolor",
    "a star above a castle, paper cutout",
)


@dataclass(frozen=True)
class TrainConfig:
    """All that a run needs; `minutes` set the learning rate's course, `easy` is its first share."""

    minutes: float = 68.0
    batch: int = 64
    peak: float = 2e-3
    warmup: float = 0.06
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    ema: float = 0.999
    noise_mean: float = 0.6
    noise_std: float = 1.1
    easy: float = 0.4
    threads: int = 2
    seed: int = 0
    checkpoint_minutes: float = 4.0
    sheet_minutes: float = 8.0


def rate(config: TrainConfig, fraction: float) -> float:
    """One-cycle learning rate at a fraction of the run: linear rise, cosine fall to 1%."""
    if fraction < config.warmup:
        return config.peak * (0.05 + 0.95 * fraction / config.warmup)
    done = min(1.0, (fraction - config.warmup) / (1 - config.warmup))
    return config.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def sample(
    net: TinyFlux, tokens: Tokens, prompts: list[str], size: tuple[int, int] = (64, 64), steps: int = 24, seed: int = 0
) -> Tensor:
    """Latents [n, 16, h, w] by Euler steps with true guidance 3, the schedule shifted as FluxPipeline shifts it."""
    width, height = size[0] // PATCH, size[1] // PATCH
    noise = torch.randn(len(prompts), CHANNELS, height, width, generator=torch.Generator().manual_seed(seed))
    x, count = pack(noise), height * width // 4
    shift = math.exp(0.5 + (1.15 - 0.5) * (count - 16) / (256 - 16))
    sigmas = torch.linspace(1, 1 / steps, steps)
    sigmas = torch.cat([shift / (shift + (1 / sigmas - 1)), torch.zeros(1)])
    clip_ids, t5_ids = tokens.encode(prompts + [""] * len(prompts))
    ids = image_ids(height // 2, width // 2)
    for now, then in itertools.pairwise(sigmas):
        velocity = net(torch.cat([x, x]), now.expand(2 * len(prompts)), clip_ids, t5_ids, ids)
        wanted, plain = velocity.chunk(2)
        x = x + (then - now) * (plain + 3.0 * (wanted - plain))
    return unpack(x, height, width)


class Batches:
    """Random batches, each of one aspect ratio, as latents tokens, ids of both tokenizers and positions.

    While `easy`, only captioned single objects on squares, whose subjects are learnt fastest.
    """

    easy = False

    def __init__(self, folder: Path, tokens: Tokens, code: PatchCode, batch: int, seed: int) -> None:
        self.code, self.batch = code, batch
        self.rng = np.random.default_rng(seed)
        self.parts = []
        for pictures, captions in dataset.load(folder).values():
            clip_ids, t5_ids = tokens.encode(captions)
            self.parts.append((pictures, clip_ids, t5_ids))
        _, captions = dataset.load(folder)[64, 64]
        self.singles = np.array(
            [i for i, text in enumerate(captions) if text and not any(f" {word} " in text for word in RELATIONS)]
        )
        sizes = np.array([len(part[0]) for part in self.parts], float)
        self.shares = sizes / sizes.sum()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        while True:
            part = 0 if self.easy else self.rng.choice(len(self.parts), p=self.shares)
            pictures, clip_ids, t5_ids = self.parts[part]
            choice = self.singles if self.easy else len(pictures)
            rows = np.sort(self.rng.choice(choice, self.batch, replace=False))
            latents = self.code.encode(pixels(pictures[rows]))
            height, width = latents.shape[2] // 2, latents.shape[3] // 2
            moved = self.rng.random() < 0.25
            top, left = (int(self.rng.integers(0, 2 * side + 1)) * moved for side in (height, width))
            yield pack(latents), clip_ids[rows], t5_ids[rows], image_ids(height, width, top, left)


class Run:
    """A training run in a folder: tokenizers, patch code, checkpoint.pt, log.jsonl, sheets.

    A new run may take its weights, tokenizers and code from the folder of another, `start`.
    """

    def __init__(self, folder: Path, data: Path, config: TrainConfig, start: Path | None = None) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        if start and not (folder / "code.npz").exists():
            shutil.copytree(start, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("sheet*", "*.tmp", "vae*"))
        torch.manual_seed(config.seed)
        self.tokens, self.code = _prepare(folder, data)
        self.net = TinyFlux(self.tokens)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        matrices, rest = split(self.net)
        self.optimizers = [
            Muon(matrices, lr=config.peak, weight_decay=config.weight_decay),
            torch.optim.AdamW(rest, lr=config.peak, betas=config.betas, weight_decay=config.weight_decay, fused=True),
        ]
        self.step, self.elapsed = 0, 0.0
        self.batches = Batches(data, self.tokens, self.code, config.batch, config.seed + 1)
        self._resume()
        self.net.clip.requires_grad_(False)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            teach(self.net, self.tokens)
            self.average.load_state_dict(self.net.state_dict())
        else:
            state = torch.load(path, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.step = state["step"]
            if "optimizers" in state:
                self.elapsed = state["elapsed"]
                for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(held)
            self.batches.rng = np.random.default_rng([self.config.seed, self.step])

    def save(self) -> None:
        """Write the checkpoint in one move, so that a reader never sees half of it."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").replace(self.folder / "checkpoint.pt")

    def sheet(self) -> Path:
        """Samples of the averaged weights for the fixed prompts, through the linear code."""
        images = to_uint8(self.code.decode(sample(self.average, self.tokens, list(PROMPTS))))
        path = self.folder / f"sheet-{self.step:06d}.png"
        return save_grid(path, list(images), 4, list(PROMPTS))

    def update(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """One optimizer step; returns the loss."""
        x, clip_ids, t5_ids, ids = batch
        sigma = torch.sigmoid(self.config.noise_mean + self.config.noise_std * torch.randn(len(x)))
        noise = torch.randn_like(x)
        mixed = torch.lerp(x, noise, sigma[:, None, None])
        loss = torch.nn.functional.mse_loss(self.net(mixed, sigma, clip_ids, t5_ids, ids), noise - x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(self.config, self.elapsed / (60 * self.config.minutes))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        return loss.detach()

    def train(self, max_steps: int | None = None) -> None:
        """Until `minutes` have passed in all (over resumes), or for so many steps."""
        torch.set_num_threads(self.config.threads)
        (self.folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2))
        saved = shown = self.elapsed
        losses: list[Tensor] = []
        last = self.step + max_steps if max_steps else None
        self.batches.easy = self.config.easy > 0
        for batch in self.batches:
            self.batches.easy = self.elapsed < 60 * self.config.minutes * self.config.easy
            if self.elapsed >= 60 * self.config.minutes or self.step == last:
                break
            begin = time.perf_counter()
            losses.append(self.update(batch))
            self.step += 1
            self.elapsed += time.perf_counter() - begin
            if self.step % 50 == 0:
                record = {
                    "step": self.step,
                    "seconds": round(self.elapsed, 1),
                    "loss": round(float(torch.stack(losses).mean()), 5),
                    "rate": self.optimizers[1].param_groups[0]["lr"],
                }
                losses.clear()
                with (self.folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
            if self.elapsed - saved > 60 * self.config.checkpoint_minutes:
                saved = self.elapsed
                self.save()
            if self.elapsed - shown > 60 * self.config.sheet_minutes:
                shown = self.elapsed
                self.sheet()
        self.save()
        self.sheet()


def _prepare(folder: Path, data: Path) -> tuple[Tokens, PatchCode]:
    """The run's tokenizers and patch code: made on its first start, read afterwards."""
    if not (folder / "code.npz").exists():
        tokens = Tokens.train()
        tokens.clip.save_pretrained(folder / "tokenizer")
        tokens.t5.save_pretrained(folder / "tokenizer_2")
        pictures, _ = dataset.load(data)[64, 64]
        PatchCode.fit(pictures[:4000]).save(folder / "code.npz")
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    return Tokens(clip, t5), PatchCode.load(folder / "code.npz")
