"""The objectives with real weights: CLIP, PickScore and aesthetic heads, on tiny random ones in their formats."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_objectives import PURE, flat, noise, scores

from attnctrl.embedded import model_folder
from attnctrl.errors import ControlError
from attnctrl.evals.objectives import Models, objective


def tiny_clip(folder: Path, width: int = 12, seed: int = 0) -> Path:
    """A random CLIP in the published folders' files, with tiny-flux's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model_folder("tiny-flux") / "tokenizer")
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, **ends, **layers}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=text, vision_config={"image_size": 32, "patch_size": 8, **layers}, projection_dim=width
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder: Path, images: list[Image.Image], prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Unit embeddings of pictures and prompts, and the logit scale, from the model's forward pass."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(prompts, padding="max_length", max_length=24, truncation=True)
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    arrays = []
    for image in images:
        width, height = (round(32 * side / min(image.size)) for side in image.size)
        left, top = (width - 32) // 2, (height - 32) // 2
        square = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        arrays.append(((np.asarray(square) / 255 - mean) / std).transpose(2, 0, 1))
    with torch.no_grad():
        out = model(
            pixel_values=torch.tensor(np.stack(arrays)).float(), input_ids=torch.tensor(tokens["input_ids"]),
            attention_mask=torch.tensor(tokens["attention_mask"]),
        )  # fmt: skip
    return out.image_embeds, out.text_embeds, model.logit_scale.exp().item()


PICTURES = [noise(48), flat(PURE["red"], (64, 32)), noise(64, 60, 3), flat(PURE["blue"], (40, 40))]
PROMPTS = ["a fox, comic", "a key", "a fox, comic", "a red apple left of a very long list of things, " * 5]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNCTRL_WEIGHTS", str(tmp_path))
    tiny_clip(tmp_path / "clip")
    return tmp_path


def test_clip_and_pickscore_are_cosines(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, _ = by_hand(weights / "clip", PICTURES, PROMPTS)
    assert objective("clip", "cpu")(PICTURES, PROMPTS) == pytest.approx(
        (100 * (images * texts).sum(1)).tolist(), abs=1e-3
    )
    fixed = (100 * images @ texts[1]).tolist()
    assert objective("text:a key", "cpu")(PICTURES, PROMPTS) == pytest.approx(fixed, abs=1e-3)
    pick = tiny_clip(weights / "elsewhere", seed=1)
    images, texts, scale = by_hand(pick, PICTURES, PROMPTS)
    assert scale == pytest.approx(1 / 0.07, rel=1e-2)
    expected = (scale * (images * texts).sum(1)).tolist()
    assert objective(f"pickscore:{pick}", "cpu")(PICTURES, PROMPTS) == pytest.approx(expected, abs=1e-3)
    assert objective("clip", "cpu")([], []) == []
    monkeypatch.setenv("HOME", str(weights))
    assert objective("pickscore:~/elsewhere", "cpu")(PICTURES, PROMPTS) == pytest.approx(expected, abs=1e-3)


def test_many_pictures_go_in_parts(weights: Path) -> None:
    many = [noise(32, seed=i) for i in range(35)]
    once = objective("clip", "cpu")(many, ["a key"] * 35)
    assert once[-1] == pytest.approx(objective("clip", "cpu")(many[-1:], ["a key"])[0], abs=1e-4)


def test_preprocessing_is_the_folders_own(weights: Path) -> None:
    plain = objective("clip", "cpu")(PICTURES, PROMPTS)
    own = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_processor_type": "CLIPImageProcessor",
    }
    (weights / "clip" / "preprocessor_config.json").write_text(json.dumps(own))
    assert objective("clip", "cpu")(PICTURES, PROMPTS) == pytest.approx(plain, abs=1e-5)
    (weights / "clip" / "preprocessor_config.json").write_text(json.dumps({**own, "image_std": [1.0, 1.0, 1.0]}))
    assert objective("clip", "cpu")(PICTURES, PROMPTS) != pytest.approx(plain, abs=1e-3)


def test_aesthetic_is_the_heads_layers_on_unit_embeddings(weights: Path) -> None:
    torch.manual_seed(0)
    sizes = [12, 20, 8, 6, 4, 1]
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    numbered = zip((0, 2, 4, 6, 7), linear, strict=True)
    state = {f"layers.{i}.{key}": value for i, layer in numbered for key, value in layer.state_dict().items()}
    torch.save(dict(reversed(state.items())), weights / "aesthetic.pth")
    images, _, _ = by_hand(weights / "clip", PICTURES, PROMPTS)
    with torch.no_grad():
        expected = torch.nn.Sequential(*linear)(images)[:, 0].tolist()
    assert objective("aesthetic", "cpu")(PICTURES, PROMPTS) == pytest.approx(expected, abs=1e-5)
    one = {"weight": torch.randn(1, 12), "bias": torch.randn(1)}
    save_file(one, weights / "one.safetensors")
    expected = (images @ one["weight"][0] + one["bias"]).tolist()
    assert objective(f"aesthetic:{weights}/one.safetensors", "cpu")(PICTURES, PROMPTS) == pytest.approx(
        expected, abs=1e-5
    )


def test_weights_that_do_not_fit_are_refused(weights: Path) -> None:
    clip = weights / "clip"
    torch.save({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, weights / "seven.pth")
    torch.save({"weight": torch.ones(2, 12), "bias": torch.ones(2)}, weights / "two.pth")
    (weights / "text.pth").write_text("no weights")
    refused = {
        "seven.pth": "width 7",
        "two.pth": "as an aesthetic head",
        "text.pth": "as an aesthetic head",
        "a-relu.pth": "ReLUs",
    }
    torch.save({"weight": torch.ones(1, 12), "bias": torch.ones(1)}, weights / "a-relu.pth")
    for file, said in refused.items():
        with pytest.raises(ControlError, match=said):
            objective(f"aesthetic:{weights}/{file}", "cpu")
    config = (clip / "config.json").read_text()
    (clip / "config.json").write_text(config.replace('"clip"', '"siglip"'))
    with pytest.raises(ControlError, match="another kind"):
        objective("clip", "cpu")
    (clip / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(ControlError, match="lack"):
        objective("clip", "cpu")
    (clip / "config.json").write_text(config)
    (clip / "tokenizer.json").unlink()
    with pytest.raises(ControlError, match="no tokenizer"):
        objective("clip", "cpu")
    (clip / "model.safetensors").unlink()
    with pytest.raises(ControlError, match="cannot load CLIP"):
        objective("clip", "cpu")


def test_parts_share_their_networks(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnctrl.evals import scorers

    loads: list[Path] = []
    real = scorers._loaded
    monkeypatch.setattr(scorers, "_loaded", lambda folder: (loads.append(folder), real(folder))[1])
    shared = objective("sum:clip+text:a key+clip", "cpu")(PICTURES, PROMPTS)
    assert len(loads) == 1
    models = Models("cpu")
    for text in ("clip", "text:a fox"):
        objective(text, models=models)
    assert len(loads) == 2
    parts = [objective(text, "cpu")(PICTURES, PROMPTS) for text in ("clip", "text:a key", "clip")]
    assert shared == pytest.approx(np.sum(parts, 0), abs=1e-4)


def test_pictures_of_every_mode_are_read(weights: Path) -> None:
    modes = [noise().convert(mode) for mode in ("RGB", "RGBA", "P")]
    for text in ("contrast", "clip"):
        values = scores(text, *modes)
        assert values[1] == pytest.approx(values[0])
        assert values[2] == pytest.approx(values[0], rel=0.5)
