"""Metrics by published networks, on tiny random weights in the published formats, against forward passes by hand."""

from __future__ import annotations

import json
from argparse import Namespace
from itertools import combinations
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_objectives import PURE, flat, noise
from test_scorers import by_hand, tiny_clip
from torch.nn.functional import conv2d, gelu, layer_norm, normalize, softmax

from attnctrl.errors import ControlError
from attnctrl.evals.metrics.encoders import Preprocessing, in_batches
from attnctrl.evals.metrics.metric import DrawnSet
from attnctrl.evals.metrics.networks import make
from attnctrl.evals.objectives import Models

PICTURES = [noise(48), flat(PURE["red"], (64, 40)), noise(64, 60, 3), flat(PURE["blue"], (40, 40))]
PROMPTS = ["a fox, comic", "a key, comic", "an apple, comic", "a cat, comic"]
SUBJECTS = ["a fox", "a key", "an apple", "a cat"]
REFERENCE = noise(50, 90, 7)
SET = DrawnSet(PROMPTS, PICTURES, SUBJECTS)
LED = DrawnSet(PROMPTS, PICTURES, SUBJECTS, reference=REFERENCE)
ONE = DrawnSet(PROMPTS[:1], PICTURES[:1], SUBJECTS[:1])
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def value(text: str, drawn: DrawnSet) -> float | None:
    name, _, argument = text.partition(":")
    return make(name, argument, Models("cpu"))(drawn)


def mean_cosine(rows: Any) -> float:
    units = [np.asarray(row, dtype=np.float64) / np.linalg.norm(np.asarray(row, dtype=np.float64)) for row in rows]
    return float(np.mean([a @ b for a, b in combinations(units, 2)]))


def mean_cosine_to(rows: Any, reference: Any) -> float:
    return float(np.mean([mean_cosine([row, reference]) for row in rows]))


def pixels_by_hand(image: Image.Image, size: tuple[int, int], crop: int, stats: Any) -> torch.Tensor:
    """float64 [1, 3, crop, crop] of a picture resized to (width, height) and cropped to the centre."""
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    square = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    square = square[top : top + crop, left : left + crop] / 255
    return torch.tensor((square - stats[0]) / stats[1]).permute(2, 0, 1)[None]


def shorter_to(side: int, image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (side, int(side * height / width)) if width < height else (int(side * width / height), side)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """[tokens, width] each; the heads side by side."""
    size = q.shape[1] // heads
    parts = [slice(i * size, (i + 1) * size) for i in range(heads)]
    return torch.cat([softmax(q[:, part] @ k[:, part].T / sqrt(size), 1) @ v[:, part] for part in parts], 1)


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNCTRL_WEIGHTS", str(tmp_path))
    return tiny_clip(tmp_path / "clip")


def test_clip_t_is_the_cosine_with_the_subjects(clip: Path) -> None:
    images, texts, _ = by_hand(clip, PICTURES, SUBJECTS)
    assert value("clip-t", SET) == pytest.approx((images * texts).sum(1).double().mean().item(), abs=1e-5)
    _, prompts, _ = by_hand(clip, PICTURES, PROMPTS)
    plain = (images * prompts).sum(1).mean().item()
    assert value("clip-t", DrawnSet(PROMPTS, PICTURES)) == pytest.approx(plain, abs=1e-5)
    assert value("clip-t", SET) != pytest.approx(plain, abs=1e-5)
    assert value("clip-t", ONE) == pytest.approx((images[0] @ texts[0]).item(), abs=1e-5)
    assert value("clip-t", DrawnSet([], [])) is None


def test_clip_i_is_the_cosine_of_pairs_or_with_the_reference(clip: Path) -> None:
    images, _, _ = by_hand(clip, [*PICTURES, REFERENCE], PROMPTS)
    assert value(f"clip-i:{clip}", SET) == pytest.approx(mean_cosine(images[:4]), abs=1e-5)
    assert value("clip-i", LED) == pytest.approx(mean_cosine_to(images[:4], images[4]), abs=1e-5)
    assert value("clip-i", ONE) is None
    assert value("clip-i", DrawnSet(PROMPTS[:1], PICTURES[:1], reference=REFERENCE)) == pytest.approx(
        mean_cosine([images[0], images[4]]), abs=1e-5
    )
    assert value("clip-i", DrawnSet([], [], reference=REFERENCE)) is None


def test_clips_metrics_share_the_network_and_the_features(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnctrl.evals import scorers

    loads, calls = [], []
    loaded, images = scorers._loaded, scorers.Clip.images
    monkeypatch.setattr(scorers, "_loaded", lambda folder: (loads.append(folder), loaded(folder))[1])
    monkeypatch.setattr(scorers.Clip, "images", lambda self, some: (calls.append(len(some)), images(self, some))[1])
    models = Models("cpu")
    text, alike = make("clip-t", "", models), make("clip-i", "", models)
    for drawn in (SET, LED, ONE):
        assert text(drawn) == pytest.approx(value("clip-t", drawn))
        assert alike(drawn) == pytest.approx(value("clip-i", drawn))
    assert len(loads) == 1 + 6
    calls.clear()
    again = DrawnSet(PROMPTS, list(PICTURES))
    text(again), alike(again)
    assert calls == [4]


def tiny_dino(folder: Path, **preprocessing: Any) -> Path:
    """A random ViT as facebook/dino-vitb8 is published: no pooler, an old preprocessor."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    layers = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = ViTConfig(image_size=32, patch_size=8, initializer_range=0.3, **layers)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    own = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 3, "do_resize": True}
    stats = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(own | stats | preprocessing))
    return folder


def dino_by_hand(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The CLS token of a pre-norm ViT, from the file's tensors in float64."""
    state = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (12,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    patch = "embeddings.patch_embeddings.projection"
    patches = conv2d(pixels, state[f"{patch}.weight"], state[f"{patch}.bias"], stride=8)[0].flatten(1).T
    x = torch.cat([state["embeddings.cls_token"][0], patches]) + state["embeddings.position_embeddings"][0]
    for i in range(2):
        layer = f"encoder.layer.{i}"
        h = norm(f"{layer}.layernorm_before", x)
        q, k, v = (linear(f"{layer}.attention.attention.{part}", h) for part in ("query", "key", "value"))
        x = x + linear(f"{layer}.attention.output.dense", attention(q, k, v, 3))
        h = gelu(linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", x)))
        x = x + linear(f"{layer}.output.dense", h)
    return norm("layernorm", x)[0]


def test_dino_is_the_cosine_of_cls_tokens(tmp_path: Path) -> None:
    folder = tiny_dino(tmp_path / "dino")
    pixels = [pixels_by_hand(image, (32, 32), 32, IMAGENET) for image in (*PICTURES, REFERENCE)]
    rows = [dino_by_hand(folder, one) for one in pixels]
    assert value(f"dino:{folder}", SET) == pytest.approx(mean_cosine(rows[:4]), abs=1e-5)
    assert value(f"dino:{folder}", LED) == pytest.approx(mean_cosine_to(rows[:4], rows[4]), abs=1e-5)
    assert value(f"dino:{folder}", ONE) is None


def test_dinov2_is_read_with_its_own_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    layers = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "initializer_range": 0.3}
    model = Dinov2Model(Dinov2Config(image_size=32, patch_size=8, **layers)).eval()
    model.save_pretrained(tmp_path / "dino")
    own = {
        "image_processor_type": "BitImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 36},
        "resample": 3,
    }
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(own))
    pixels = [pixels_by_hand(image, shorter_to(36, image), 32, IMAGENET).float() for image in PICTURES]
    with torch.no_grad():
        rows = [model(pixel_values=one).last_hidden_state[0, 0] for one in pixels]
    monkeypatch.setenv("ATTNCTRL_WEIGHTS", str(tmp_path))
    assert value("dino", SET) == pytest.approx(mean_cosine(rows), abs=1e-5)


@pytest.mark.parametrize("size", [{"height": 24, "width": 32}, {"shortest_edge": 30}])
def test_preprocessing_is_transformers(tmp_path: Path, size: dict[str, int]) -> None:
    import transformers

    kind = getattr(transformers, "BitImageProcessorPil" if "shortest_edge" in size else "ViTImageProcessorPil", None)
    if kind is None:
        pytest.skip("this version of transformers names them otherwise")
    known = {"size": size, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    known |= {"do_center_crop": True, "crop_size": {"height": 20, "width": 26}} if "shortest_edge" in size else {}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known))
    mine = Preprocessing.read(tmp_path / "preprocessor_config.json")
    for image in (noise(48), noise(64).crop((0, 0, 64, 41)), noise(64).crop((0, 0, 39, 64))):
        theirs = kind(**known)(images=[image], return_tensors="pt").pixel_values
        assert torch.allclose(mine([image]), theirs, atol=1e-5)


def csd_state(seed: int = 0, width: int = 128, layers: int = 2) -> dict[str, torch.Tensor]:
    """OpenAI's names of a visual tower without its projection, and CSD's two heads."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, 8, 8), "class_embedding": (width,), "positional_embedding": (17, width),
    }  # fmt: skip
    for i in range(layers):
        shapes |= {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (200, width), "mlp.c_fc.bias": (200,),
            "mlp.c_proj.weight": (width, 200), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        inner = [name for name in shapes if name.startswith(("attn", "ln_", "mlp"))]
        shapes |= {f"transformer.resblocks.{i}.{name}": shapes.pop(name) for name in inner}
    shapes |= {f"ln_{end}.{part}": (width,) for end in ("pre", "post") for part in ("weight", "bias")}
    state = {f"backbone.{name}": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    return state | {f"last_layer_{head}": torch.randn(width, 24) for head in ("style", "content")}


def csd_file(file: Path, state: dict[str, torch.Tensor], **more: Any) -> Path:
    """A training checkpoint as it is released, of a model in DataParallel."""
    args = Namespace(lr=np.float64(0.003), name="vit_large")
    held = {"model_state_dict": {f"module.{name}": value for name, value in state.items()}, "iter": 80000}
    torch.save({**held, "opt_bb": {"state": {0: torch.ones(3)}}, "args": args, "fp16_scaler": None}, file, **more)
    return file


def csd_by_hand(state: dict[str, torch.Tensor], image: Image.Image) -> torch.Tensor:
    """The style descriptor of OpenAI's visual transformer in float64, with 2 heads of 64."""
    weights = {name.removeprefix("backbone."): tensor.double() for name, tensor in state.items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (128,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    pixels = pixels_by_hand(image, shorter_to(32, image), 32, CLIP)
    patches = conv2d(pixels, weights["conv1.weight"], stride=8)[0].flatten(1).T
    x = norm("ln_pre", torch.cat([weights["class_embedding"][None], patches]) + weights["positional_embedding"])
    for i in range(2):
        block = {name.split(f"resblocks.{i}.")[1]: w for name, w in weights.items() if f"resblocks.{i}." in name}
        h = norm(f"transformer.resblocks.{i}.ln_1", x)
        q, k, v = (h @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]).chunk(3, 1)
        x = x + attention(q, k, v, 2) @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        h = norm(f"transformer.resblocks.{i}.ln_2", x) @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        x = x + (h * torch.sigmoid(1.702 * h)) @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return normalize(norm("ln_post", x[:1]) @ weights["last_layer_style"], dim=1)[0]


def test_csd_is_the_cosine_of_style_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = csd_state()
    rows = [csd_by_hand(state, image) for image in (*PICTURES, REFERENCE)]
    expected = mean_cosine(rows[:4])
    file = csd_file(tmp_path / "checkpoint.pth", state)
    assert value(f"csd:{file}", SET) == pytest.approx(expected, abs=1e-5)
    assert value(f"csd:{file}", LED) == pytest.approx(mean_cosine_to(rows[:4], rows[4]), abs=1e-5)
    assert value(f"csd:{file}", ONE) is None
    (tmp_path / "csd").mkdir()
    save_file(state, tmp_path / "csd" / "model.safetensors")
    monkeypatch.setenv("ATTNCTRL_WEIGHTS", str(tmp_path))
    assert value("csd", SET) == pytest.approx(expected, abs=1e-5)
    csd_file(tmp_path / "csd" / "pytorch_model.bin", csd_state(seed=5))
    assert value("csd", SET) != pytest.approx(expected, abs=1e-5)


def test_csds_checkpoint_was_written_by_an_older_numpy(tmp_path: Path) -> None:
    state = csd_state()
    old = csd_file(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False)
    written = old.read_bytes()
    assert b"numpy._core.multiarray" in written
    old.write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    rows = [csd_by_hand(state, image) for image in PICTURES]
    assert value(f"csd:{old}", SET) == pytest.approx(mean_cosine(rows), abs=1e-5)


def test_many_pictures_go_in_parts(tmp_path: Path) -> None:
    seen: list[int] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        assert not torch.is_grad_enabled()
        return pixels.mean((2, 3))

    of = SimpleNamespace(preprocess=Preprocessing(8, (8, 8), *CLIP), device="cpu")
    many = [flat((i, 2 * i, 3 * i)) for i in range(35)]
    found = in_batches(encode, of, many)
    assert seen == [32, 3]
    assert found.dtype == torch.float64
    expected = [(np.array([i, 2 * i, 3 * i]) / 255 - CLIP[0]) / CLIP[1] for i in range(35)]
    assert np.allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["clip-t", "clip-i", "dino", "csd", "dreamsim"])
def test_weights_that_are_not_there_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = name.split("-")[0]
    fetch = "fill it once" if name == "dreamsim" else f"hf download .*--local-dir FOLDER/{family}"
    monkeypatch.delenv("ATTNCTRL_WEIGHTS", raising=False)
    with pytest.raises(ControlError, match=f"{name} needs .* ATTNCTRL_WEIGHTS is not set: .*{fetch}"):
        value(name, SET)
    monkeypatch.setenv("ATTNCTRL_WEIGHTS", str(tmp_path))
    with pytest.raises(ControlError, match=f"not at {tmp_path / family}: .*or write {name}:FOLDER/{family}"):
        value(name, SET)
    with pytest.raises(ControlError, match=f"not at {tmp_path / 'other'}"):
        value(f"{name}:{tmp_path / 'other'}", SET)


def test_dinos_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tiny_dino(tmp_path / "dino")
    config, weights = folder / "config.json", folder / "model.safetensors"
    text, state = config.read_text(), load_file(weights)
    config.write_text(text.replace('"vit"', '"clip"'))
    with pytest.raises(
        ControlError, match=rf"^{folder} holds another kind of model than DINO \(clip\); use facebook/dino-vitb8"
    ):
        value(f"dino:{folder}", SET)
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ControlError, match="lack 16 of DINO's"):
        value(f"dino:{folder}", SET)
    config.write_text(text)
    save_file({name: tensor for name, tensor in state.items() if "cls_token" not in name}, weights)
    with pytest.raises(ControlError, match=r"lack 1 of DINO's, such as embeddings\.cls_token"):
        value(f"dino:{folder}", SET)
    weights.write_bytes(b"broken")
    with pytest.raises(ControlError, match="cannot load DINO from"):
        value(f"dino:{folder}", SET)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ControlError, match=r"cannot load DINO from .*preprocessor_config\.json"):
        value(f"dino:{folder}", SET)


def test_csds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "csd").mkdir()
    with pytest.raises(ControlError, match=r"none of pytorch_model\.bin.*download tomg-group-umd/CSD-ViT-L there"):
        value(f"csd:{tmp_path / 'csd'}", SET)
    state = csd_state()
    headless = csd_file(tmp_path / "headless.pth", {"backbone.conv1.weight": state["backbone.conv1.weight"]})
    with pytest.raises(ControlError, match="holds no CSD weights"):
        value(f"csd:{headless}", SET)
    gone = "backbone.transformer.resblocks.1.ln_2.bias"
    less = csd_file(tmp_path / "less.pth", {name: tensor for name, tensor in state.items() if name != gone})
    with pytest.raises(ControlError, match=r"Missing key.*layers\.1\.layer_norm2\.bias"):
        value(f"csd:{less}", SET)
    more = csd_file(tmp_path / "more.pth", state | {"backbone.proj": torch.ones(128, 24)})
    with pytest.raises(ControlError, match=r"Unexpected key.*proj"):
        value(f"csd:{more}", SET)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(less.read_bytes()[:5000])
    with pytest.raises(ControlError, match=r"cannot load CSD from .*cut\.pth"):
        value(f"csd:{cut}", SET)
    torch.save({"model_state_dict": Path("unsafe")}, tmp_path / "unsafe.pth")
    with pytest.raises(ControlError, match=r"cannot load CSD from .*Weights only"):
        value(f"csd:{tmp_path / 'unsafe.pth'}", SET)
