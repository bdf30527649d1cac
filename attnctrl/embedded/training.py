"""Flow-matching training of the embedded models on a CPU: resumable, from one recipe, with logs and sample sheets.

x_t = (1 - s) x_0 + s e, target e - x_0 (Lipman et al., 2023; Esser et al., 2024, with a logit-normal s).
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from attnctrl.descriptions import Description
from attnctrl.embedded import dataset
from attnctrl.embedded.fast import fast
from attnctrl.embedded.latents import PatchCode, to_uint8
from attnctrl.embedded.model import TinyModel, Tokens
from attnctrl.embedded.muon import Muon, split
from attnctrl.embedded.naming import Naming
from attnctrl.embedded.sampling import PROMPTS, sample
from attnctrl.embedded.scenes import WORLDS
from attnctrl.embedded.sheet import save_grid
from attnctrl.embedded.swapped import Swapped
from attnctrl.embedded.t5_training import taught_t5
from attnctrl.embedded.text_training import teach
from attnctrl.embedded.tiny_flux import TinyFlux
from attnctrl.embedded.tiny_sd3 import TinySD3

RECIPES = Path(__file__).parent / "recipes"
NETS: dict[str, type[TinyModel]] = {net.name: net for net in (TinyFlux, TinySD3)}


class Stage(Description):
    """A part of a run: so many steps of a batch on so many pictures of a world (scenes.WORLDS), noise logit-normal.

    `pairs` is the share of captions with a relation; None: as the world draws them. `rates`: shares of the run's peak
    rate at the stage's beginning and end; None: the run's own schedule, which counts the stages without alone.
    """

    world: str
    steps: int
    batch: int = 48
    pictures: int = 40_000
    seed: int = 0
    pairs: float | None = None
    noise_mean: float = 0.6
    noise_std: float = 1.1
    rates: tuple[float, float] | None = None


class TrainConfig(Description):
    """All that a run needs. The rate rises over `warmup` steps, stays at `peak` and falls to 0 over `cooldown`.

    The text encoders are taught for so many steps, then frozen. `naming` weighs the loss of the naming head; `bf16`
    computes the transformer's products in bfloat16.
    """

    model: str
    stages: tuple[Stage, ...]
    peak: float = 2e-3
    warmup: int = 200
    cooldown: int = 1500
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    ema: float = 0.998
    naming: float = 0.1
    bf16: bool = True
    teach_steps: int = 1500
    compiled: bool = True
    threads: int = 1
    seed: int = 0
    checkpoint_minutes: float = 4.0
    sheet_minutes: float = 8.0
    sheet_steps: int = 24

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def samples(self, step: int) -> int:
        """Pictures seen before a step."""
        seen = 0
        for stage in self.stages:
            seen += stage.batch * min(step, stage.steps)
            step -= min(step, stage.steps)
        return seen

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        begun = 0
        for stage in self.stages:
            if begun <= step < begun + stage.steps and stage.rates is not None:
                first, last = stage.rates
                return self.peak * (first + (last - first) * (step - begun) / stage.steps)
            begun += stage.steps
        scheduled = sum(stage.steps for stage in self.stages if stage.rates is None)
        rise = (step + 1) / self.warmup if self.warmup else 1.0
        fall = (scheduled - step) / self.cooldown if self.cooldown else 1.0
        return self.peak * max(0.0, min(1.0, rise, fall))

    def stage(self, step: int) -> Stage:
        """The stage of a step; the last one afterwards."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


class Run:
    """A training run in a folder: tokenizers, patch code, checkpoint.pt, log.jsonl, sheets.

    Pictures are rendered into `data`, a folder a world, where they are missing. A new run may take its weights from
    `start`, the folder of another run (all weights of the same model, the T5 encoder of another), and from an exported
    tiny-flux the tokenizers and the patch code, which its autoencoder was made for.
    """

    def __init__(self, folder: Path, data: Path, artwork: Path, config: TrainConfig, start: Path | None = None) -> None:
        self.folder, self.data, self.artwork, self.config = folder, data, artwork, config
        folder.mkdir(parents=True, exist_ok=True)
        self._prepare(start)
        torch.manual_seed(config.seed)
        self.net: TinyModel = NETS[config.model](self.tokens)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        self._weights(start)
        for encoder in (self.net.t5, *self.net.clips()):
            encoder.requires_grad_(False)
        self.naming = Naming(self.net.transformer.inner_dim)
        self.naming.watch(self.net.binding_block())
        matrices, rest = split(self.net)
        rest += self.naming.parameters()
        products = torch.bfloat16 if config.bf16 else torch.float32
        self.optimizers = [
            Muon(matrices, lr=config.peak, weight_decay=config.weight_decay, dtype=products),
            torch.optim.AdamW(rest, lr=config.peak, betas=config.betas, weight_decay=config.weight_decay, fused=True),
        ]
        self._resume()
        self.swapped = Swapped(self.stage_data(config.stages[0]), self.tokens, self.code)
        if config.compiled:
            torch._dynamo.config.recompile_limit = 32  # a few shapes for each kind of block
            for block in self.net.transformer.modules():
                if type(block).__name__.endswith("TransformerBlock"):
                    block.compile(dynamic=False)

    def stage_data(self, stage: Stage) -> Path:
        """The folder of a stage's pictures, rendered now if it is missing."""
        folder = self.data / f"{stage.world}-{stage.pictures}-{stage.seed}"
        if not (folder / "captions.json").exists():
            world = WORLDS[stage.world]
            dataset.build(folder, self.artwork, stage.pictures, stage.seed, self.config.threads, world)
        return folder

    def _prepare(self, start: Path | None) -> None:
        if not (self.folder / "code.npz").exists():
            if start:
                for part in ("tokenizer", "tokenizer_2"):
                    shutil.copytree(start / part, self.folder / part, dirs_exist_ok=True)
                shutil.copy(start / "code.npz", self.folder / "code.npz")
            else:
                Tokens.train().save(self.folder)
                pictures, _ = dataset.load(self.stage_data(self.config.stages[0]))[64, 64]
                PatchCode.fit(pictures[:4000]).save(self.folder / "code.npz")
        self.tokens, self.code = Tokens.load(self.folder), PatchCode.load(self.folder / "code.npz")

    def _weights(self, start: Path | None) -> None:
        """First weights: another run's average, or taught text encoders."""
        if (self.folder / "checkpoint.pt").exists():
            return
        held = {}
        if start and (start / "checkpoint.pt").exists():
            held = torch.load(start / "checkpoint.pt", weights_only=True)["average"]
        if held.keys() == self.net.state_dict().keys():
            self.net.load_state_dict(held)
        else:
            t5 = {name.removeprefix("t5."): value for name, value in held.items() if name.startswith("t5.")}
            if t5:
                self.net.t5.load_state_dict(t5)
            else:
                self.net.t5.load_state_dict(taught_t5(self.tokens.t5, self.config.teach_steps).state_dict())
            teach(self.net, self.tokens, self.config.teach_steps)
        self.average.load_state_dict(self.net.state_dict())

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.naming.load_state_dict(state["naming"])
            self.step, self.seconds = state["step"], state["seconds"]
            for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(held)

    def save(self) -> None:
        """Write the checkpoint in one move, so that a reader never sees half of it."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "naming": self.naming.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").replace(self.folder / "checkpoint.pt")

    def sheet(self) -> Path:
        """Samples of the averaged weights for the fixed prompts, through the linear code."""
        drawn = sample(self.average, self.tokens, list(PROMPTS), steps=self.config.sheet_steps)
        images = to_uint8(self.code.decode(drawn))
        path = self.folder / f"sheet-{self.step:06d}.png"
        return save_grid(path, list(images), 4, list(PROMPTS))

    def update(self, batch: dataset.Batch) -> Tensor:
        """One optimizer step; returns the losses of velocity and naming, [2]."""
        x, stage = batch.latents, self.config.stage(self.step)
        generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + self.step)
        drawn = torch.randn(len(x), generator=generator)
        sigma = torch.sigmoid(stage.noise_mean + stage.noise_std * drawn)
        noise = torch.randn(x.shape, generator=generator)
        mixed = torch.lerp(x, noise, sigma[:, None, None, None])
        with fast(self.config.bf16):
            velocity = self.net(mixed, sigma, batch.clip_ids, batch.t5_ids, batch.origin)
            named = self.naming(batch.maps)
        loss = torch.nn.functional.mse_loss(velocity.float(), noise - x)
        (loss + self.config.naming * named).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.rate(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        return torch.stack([loss.detach(), named.detach()])

    def train(self, until: int | None = None) -> None:
        """To the end of the recipe, or to a step."""
        torch.set_num_threads(self.config.threads)
        (self.folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n")
        last = min(until or self.config.steps, self.config.steps)
        saved = shown = logged = self.seconds
        losses: list[Tensor] = []
        stage, batches = None, None
        while self.step < last:
            if stage != self.config.stage(self.step) or batches is None:
                stage = self.config.stage(self.step)
                folder = self.stage_data(stage)
                batches = dataset.Batches(
                    folder, self.tokens, self.code, stage.batch, self.config.seed + 1, stage.pairs
                )
            begin = time.perf_counter()
            losses.append(self.update(batches[self.step]))
            self.step += 1
            self.seconds += time.perf_counter() - begin
            if self.step % 50 == 0:
                self._log(losses, self.seconds - logged)
                logged = self.seconds
                losses.clear()
            if self.seconds - saved > 60 * self.config.checkpoint_minutes:
                saved = self.seconds
                self.save()
            if self.seconds - shown > 60 * self.config.sheet_minutes:
                shown = self.seconds
                self.sheet()
        self.save()
        self.sheet()

    def _log(self, losses: list[Tensor], seconds: float) -> None:
        loss, named = torch.stack(losses).mean(0).tolist()
        record = {
            "step": self.step,
            "samples": self.config.samples(self.step),
            "seconds": round(self.seconds, 1),
            "pace": round(len(losses) * self.config.stage(self.step - 1).batch / max(seconds, 1e-9), 1),
            "loss": round(loss, 5),
            "naming": round(named, 5),
            "rate": self.config.rate(self.step),
        }
        if self.step % 250 == 0:
            with fast(self.config.bf16):
                record.update(self.swapped(self.average))
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
