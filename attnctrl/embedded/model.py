"""What the embedded models share: tokenizers, text encoders, how a training run sees them, and their folders."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel, T5EncoderModel, T5Tokenizer

from attnctrl.embedded import text


@dataclass
class Tokens:
    """Both tokenizers; `encode` gives what a pipeline gives its encoders."""

    clip: CLIPTokenizer
    t5: T5Tokenizer

    @classmethod
    def train(cls) -> Tokens:
        """From the caption grammar."""
        captions = text.corpus()
        return cls(text.clip_tokenizer(captions), text.t5_tokenizer(captions))

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """From a training run's folder."""
        clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return cls(clip, T5Tokenizer.from_pretrained(folder / "tokenizer_2"))

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        self.clip.save_pretrained(folder / "tokenizer")
        self.t5.save_pretrained(folder / "tokenizer_2")

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP ids and T5 ids, each [n, 24]."""
        form = {"padding": "max_length", "max_length": text.TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
        return self.clip(captions, **form).input_ids, self.t5(captions, **form).input_ids


class TinyModel(nn.Module):
    """A transformer with its text encoders, as training sees it: latents in, velocity out."""

    name: ClassVar[str]
    guidance: ClassVar[dict[str, Any]]
    """The call arguments by which the pipeline guides."""
    transformer: Any
    t5: T5EncoderModel

    @abstractmethod
    def forward(
        self, latents: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor, origin: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Velocity of latents [n, 16, h, w] at noise level sigma [n], their first token at row and column `origin`."""

    @abstractmethod
    def clips(self) -> list[PreTrainedModel]:
        """The CLIP encoders, which are taught before they steer pictures."""

    @abstractmethod
    def binding_block(self) -> nn.Module:
        """The last block of the first third: after it each image token should know its object."""

    @abstractmethod
    def shift(self, tokens: int) -> float:
        """The schedule's shift for so many image tokens."""

    @abstractmethod
    def pipeline(self, tokens: Tokens, vae: AutoencoderKL) -> DiffusionPipeline:
        """The complete diffusers pipeline."""

    def export(self, folder: Path, tokens: Tokens, vae: AutoencoderKL) -> Path:
        """Write a complete pipeline folder, the transformer in half precision, and the sampling defaults beside it."""
        self.transformer.half()
        self.pipeline(tokens, vae).save_pretrained(folder)
        sampling = {"height": 64, "width": 64, "max_sequence_length": text.TEXT_LENGTH, "num_inference_steps": 24}
        (folder / "attnctrl.json").write_text(json.dumps({**sampling, **self.guidance}, indent=2) + "\n")
        for path in folder.rglob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes files that only their owner can read
        return folder
