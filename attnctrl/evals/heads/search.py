"""HeadHunter: which heads, perturbed, push a picture towards an objective (arXiv 2506.10978)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ...errors import ControlError
from ...pipelines.generate import check_size
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.presets import described
from ..ledger import Ledger, processes
from ..objectives import Objective
from .drawing import DrawnRun, Head, Shot, heads_of, identity, pool, text_of

Progress = Callable[[int, int, float], None]
"""progress(pictures done, pictures in all, seconds left)."""
Scores = dict[Shot, dict[str, float]]


class SearchConfig(DrawnRun):
    """All that a search depends on; the paper's style setting is rounds 5, top_k 3, u 1 and five pictures a set.

    Every prompt is drawn with every seed. `halving`: each round scores all candidates on a quarter of the pairs, the
    better half of them on half, and the better half of those on all.
    """

    prompts: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    rounds: int = Field(5, ge=1)
    top_k: int = Field(3, ge=1)
    halving: bool = False

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Prompt and seed of every picture that a set of heads is scored by."""
        return [(prompt, seed) for seed in self.seeds for prompt in self.prompts]

    def stages(self) -> list[tuple[int, float]]:
        """Of a round: how many pairs, and which share of the candidates stays for the next stage."""
        whole = len(self.pairs)
        if not self.halving or whole < 4:
            return [(whole, 0.0)]
        return [(math.ceil(whole / 4), 0.5), (math.ceil(whole / 2), 0.5), (whole, 0.0)]


@dataclass(frozen=True)
class Round:
    """One round of one objective: every candidate's mean gain over the plain pictures with its standard error."""

    chosen: tuple[Head, ...]
    """The heads after this round."""
    gains: dict[Head, tuple[float, float]]


class Search:
    """A search in a folder; killed at any moment it goes on, and it gives the same on any number of processes."""

    def __init__(
        self, pipe: ControlledPipeline, config: SearchConfig, objectives: Mapping[str, Objective], folder: Path
    ) -> None:
        self.pipe, self.objectives = pipe, objectives
        self.config = config.model_copy(update={"weights": described(pipe, config.model)["weights"]})
        check_size(pipe, config.height, config.width)
        self.heads = pool(pipe, config.where)
        if config.rounds * config.top_k > len(self.heads):
            raise ControlError(
                f"{config.rounds} rounds of {config.top_k} want more than the {len(self.heads)} heads there are to "
                "choose from; take fewer rounds or a smaller top_k"
            )
        self.state = processes()
        self.ledger = Ledger(folder, self.config, self.state.process_index)
        self.scores: Scores = {}
        self._begun, self._fresh, self.drawn = time.monotonic(), 0, 0

    def expected(self) -> int:
        """How many pictures the whole search draws, if no two objectives share a set after the first round."""
        total = len(self.config.pairs)
        for r in range(self.config.rounds):
            left = len(self.heads) - r * self.config.top_k
            seen = 0
            for pairs, stays in self.config.stages():
                total += left * (pairs - seen) * (1 if r == 0 else len(self.objectives))
                seen, left = pairs, math.ceil(left * stays)
        return total

    def measure(self) -> float:
        """Seconds a picture with guidance, of one batch; the estimate before a search."""
        shots = [
            Shot(text_of(self.heads[:1]), *self.config.pairs[i % len(self.config.pairs)])
            for i in range(self.config.batch_size)
        ]
        begin = time.monotonic()
        self.config.drawing(self.pipe, shots)
        return (time.monotonic() - begin) / len(shots)

    def run(self, progress: Progress | None = None) -> dict[str, list[Round]]:
        """Every round of every objective, in order."""
        with self.ledger.writing():
            return self._run(progress)

    def _run(self, progress: Progress | None) -> dict[str, list[Round]]:
        torch.set_num_threads(self.config.threads)
        self._draw([Shot("", *pair) for pair in self.config.pairs], progress)
        rounds: dict[str, list[Round]] = {name: [] for name in self.objectives}
        for _ in range(self.config.rounds):
            have = {name: (done[-1].chosen if done else ()) for name, done in rounds.items()}
            left = {name: [h for h in self.heads if h not in have[name]] for name in have}
            for pairs, stays in self.config.stages():
                chosen = self.config.pairs[:pairs]
                wanted = [Shot(text_of((*have[n], h)), *p) for n in have for h in left[n] for p in chosen]
                self._draw(wanted, progress)
                gains = {n: {h: self._gain(n, (*have[n], h), chosen) for h in left[n]} for n in have}
                if stays:
                    left = {n: _best(gains[n], max(self.config.top_k, math.ceil(stays * len(left[n])))) for n in have}
            for name, done in rounds.items():
                best = _best(gains[name], self.config.top_k)
                done.append(Round((*have[name], *best), gains[name]))
        return rounds

    def best(self, objective: str) -> tuple[str, float, float]:
        """Of all sets scored on every pair, the one that gains most: its heads, gain and standard error.

        A round adds its heads at once and also where they no longer help, so that the last set need not be it.
        """
        counts = Counter(shot.heads for shot in self.scores if shot.heads)
        whole = [text for text, count in counts.items() if count == len(self.config.pairs)]
        gains = {text: self._gain(objective, heads_of(text), self.config.pairs) for text in whole}
        text = max(gains, key=lambda one: (gains[one][0], -len(one), one))
        return text, *gains[text]

    def _gain(self, name: str, heads: Sequence[Head], pairs: Sequence[tuple[str, int]]) -> tuple[float, float]:
        text = text_of(heads)
        gaps = np.array([self.scores[Shot(text, *p)][name] - self.scores[Shot("", *p)][name] for p in pairs])
        error = gaps.std(ddof=1) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        return float(gaps.mean()), float(error)

    def _draw(self, shots: Sequence[Shot], progress: Progress | None) -> None:
        """Draw and score what is not there yet, this process its share; then everybody has everything."""
        needed = [shot for shot in dict.fromkeys(shots) if shot not in self.scores]
        batches = self.config.drawing.batches(needed)
        for i, batch in enumerate(batches):
            self.drawn += len(batch)
            if identity(batch) in self.ledger.done or i % self.state.num_processes != self.state.process_index:
                continue
            pictures = self.config.drawing(self.pipe, batch)
            prompts = [shot.prompt for shot in batch]
            columns = {name: one(pictures, prompts) for name, one in self.objectives.items()}
            rows = [{name: values[row] for name, values in columns.items()} for row in range(len(batch))]
            self.ledger.append(identity(batch), rows)
            self._fresh += len(batch)
            if progress:
                pace = (time.monotonic() - self._begun) / self._fresh
                left = max(0, self.expected() - self.drawn)
                progress(self.drawn, self.expected(), left * pace / self.state.num_processes)
        self.state.wait_for_everyone()
        self.ledger.read()
        for batch in batches:
            for shot, row in zip(batch, self.ledger.done[identity(batch)], strict=True):
                self.scores[shot] = row


def _best(gains: Mapping[Head, tuple[float, float]], count: int) -> list[Head]:
    return sorted(gains, key=lambda head: (-gains[head][0], head))[:count]


def as_json(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Rounds as plain values: the set after each, its gains by head with standard errors."""
    return {
        name: [
            {
                "heads": text_of(one.chosen),
                "gains": {text_of([head]): [round(g, 6), round(e, 6)] for head, (g, e) in sorted(one.gains.items())},
            }
            for one in done
        ]
        for name, done in rounds.items()
    }
