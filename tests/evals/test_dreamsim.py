"""DreamSim through its package: a stand-in with its contract, on folders as its downloads leave them."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_networks import LED, ONE, PICTURES, REFERENCE, SET, value

from attnctrl.errors import ControlError
from attnctrl.evals.metrics.networks import DreamSim

HUB = ["facebookresearch_dino_main/hubconf.py", "checkpoints/dino_vitbase16_pretrain.pth", "dino_vitb16_pretrain.pth"]
CACHED = {
    "ensemble": ["ensemble_lora", "open_clip_vitb16_pretrain.pth.tar", "clip_vitb16_pretrain.pth.tar", *HUB],
    "dino_vitb16": ["dino_vitb16_single_lora", *HUB],
    "open_clip_vitb32": ["open_clip_vitb32_single_lora", "open_clip_vitb32_pretrain.pth.tar"],
    "clip_vitb32": ["clip_vitb32_single_lora", "clip_vitb32_pretrain.pth.tar"],
}
"""What dreamsim 0.2.1 finds in its cache folder; it would fetch what is missing."""


def fill(folder: Path, kind: str) -> Path:
    for name in CACHED[kind]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


class FakeDreamSim:
    """What the package's version 0.2.1 gives: embed() squeezes, centres each embedding and divides by its norm."""

    def __init__(self) -> None:
        self.weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
        self.calls: list[dict[str, Any]] = []
        self.url = ""

    def __call__(
        self, pretrained: bool = True, device: str = "cuda", cache_dir: str = "./models",
        normalize_embeds: bool = True, dreamsim_type: str = "ensemble", use_patch_model: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        self.calls.append({"pretrained": pretrained, "device": device, "dir": cache_dir, "type": dreamsim_type})
        print("Using cached", cache_dir)
        torch.hub.set_dir(cache_dir)
        if self.url:
            torch.hub.download_url_to_file(url=self.url, dst=str(Path(cache_dir) / "pretrained.zip"))
        return SimpleNamespace(embed=self.embed), self.preprocess

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        found = (x.flatten(1) @ self.weight).squeeze()
        found = found[None] if found.ndim == 1 else found
        found = found - found.mean(1, keepdim=True)
        return found / found.norm(dim=1, keepdim=True)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        values = np.asarray(image.convert("RGB").resize((2, 2), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        return torch.from_numpy(values).permute(2, 0, 1)[None]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakeDreamSim:
    module, fake = ModuleType("dreamsim"), FakeDreamSim()
    module.dreamsim = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    return fake


def test_dreamsim_is_one_less_the_packages_distance(
    tmp_path: Path, package: FakeDreamSim, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = fill(tmp_path / "cache", "ensemble"), torch.hub.get_dir()
    embeds = [package.embed(package.preprocess(image))[0] for image in (*PICTURES, REFERENCE)]
    similar = [[torch.cosine_similarity(a, b, dim=0).item() for a in embeds] for b in embeds]
    distances = [1 - similar[a][b] for a, b in combinations(range(4), 2)]
    assert value(f"dreamsim:{folder}", SET) == pytest.approx(1 - np.mean(distances), abs=1e-5)
    assert value(f"dreamsim:{folder}", LED) == pytest.approx(np.mean(similar[4][:4]), abs=1e-5)
    assert value(f"dreamsim:{folder}", ONE) is None
    assert package.calls[0] == {"pretrained": True, "device": "cpu", "dir": str(folder), "type": "ensemble"}
    assert torch.hub.get_dir() == before
    assert capsys.readouterr().out == ""


def test_dreamsims_model_is_what_the_folder_holds(tmp_path: Path, package: FakeDreamSim) -> None:
    for kind in reversed(CACHED):
        DreamSim(fill(tmp_path, kind), "cpu")
    assert [call["type"] for call in package.calls] == [*reversed(CACHED)]
    for kind, (adapter, *others) in CACHED.items():
        fill(tmp_path, kind)
        for name in others:
            (tmp_path / name).rename(tmp_path / "away")
            with pytest.raises(ControlError, match=f"lacks {name} of DreamSim's {kind}; pip install dreamsim"):
                DreamSim(tmp_path, "cpu")
            (tmp_path / "away").rename(tmp_path / name)
        (tmp_path / adapter).unlink()
    with pytest.raises(ControlError, match="lacks ensemble_lora of"):
        DreamSim(tmp_path, "cpu")
    assert len(package.calls) == 4


def test_dreamsim_downloads_nothing(tmp_path: Path, package: FakeDreamSim, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, dst: fetched.append(url))
    real = torch.hub.download_url_to_file
    package.url = "https://example.org/weights.zip"
    with pytest.raises(ControlError, match=r"^dreamsim wants to download https://example\.org/weights\.zip"):
        DreamSim(fill(tmp_path, "ensemble"), "cpu")
    assert not fetched
    assert torch.hub.download_url_to_file is real
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(ControlError, match="dreamsim needs dreamsim: pip install dreamsim"):
        DreamSim(tmp_path, "cpu")
