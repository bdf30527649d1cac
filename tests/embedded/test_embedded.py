"""The embedded world: same scene from the same seed, true masks, captions that fit, and a folder that diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="the embedded world is drawn with opencv: install attnctrl[train]")

from attnctrl import ControlError
from attnctrl.embedded import artwork, canvas, model_folder, scenes, styles, text
from attnctrl.embedded.autoencoder import measure, untrained
from attnctrl.embedded.latents import PatchCode, pack, pixels, to_uint8, unpack


def drawings() -> dict[str, np.ndarray]:
    """Stand-in artwork: for every set and subject a disc with a coloured band, RGBA [128, 128, 4]."""
    y, x = np.mgrid[:128, :128]
    alpha = np.clip(60 - np.hypot(y - 64, x - 64), 0, 1)
    art = {}
    for i, (name, subject) in enumerate((s, n) for s in artwork.GENERATOR_SETS for n in scenes.SUBJECT_NAMES):
        color = np.zeros((128, 128, 3)) + canvas.oklch(0.6, 0.15, i / 192) * (0.5 + 0.5 * (y > 64))[..., None]
        art[f"{name}/{subject}"] = np.dstack([color * 255, alpha * 255]).astype(np.uint8)
    return art


ART = drawings()


def drawn(count: int, seed: int = 0) -> list[scenes.Scene]:
    """Seeded scenes."""
    rng = np.random.default_rng(seed)
    return [scenes.sample(rng) for _ in range(count)]


def test_one_seed_makes_one_scene_and_one_picture() -> None:
    for first, second in zip(drawn(20), drawn(20), strict=True):
        assert first == second
        assert np.array_equal(scenes.render(first, ART).image, scenes.render(second, ART).image)
    assert drawn(5, seed=1) != drawn(5)


@pytest.mark.parametrize("name", scenes.STYLE_NAMES)
def test_declared_style_parameters_show_in_the_picture(name: str) -> None:
    thing = scenes.Object("fox", None, "noto", False, 0.0, 0.0, (32.0, 32.0), 44.0)
    plain = canvas.StyleParams(0.2, 0.3, 0.3, 0.3, 0.2)

    def picture(params: canvas.StyleParams) -> np.ndarray:
        return scenes.render(scenes.Scene(64, 64, (thing,), None, None, name, params, "", 1), ART).image.astype(float)

    for field in plain.to_dict():
        moved = canvas.StyleParams(**{**plain.to_dict(), field: 0.8})
        change = np.abs(picture(plain) - picture(moved)).mean()
        assert (change > 0.5) == (field in styles.STYLES[name].params), (field, change)


def test_masks_and_boxes_are_the_artworks_alpha() -> None:
    thing = scenes.Object("key", None, "flat", False, 0.0, 0.0, (20.0, 30.0), 30.0)
    scene = scenes.Scene(64, 64, (thing,), None, None, "sticker", canvas.StyleParams(0, 0, 0, 0, 0), "", 0)
    picture = scenes.render(scene, ART)
    radius = 60 / 128 * 30 * 0.94
    assert picture.masks.shape == (1, 64, 64)
    assert picture.masks.sum() == pytest.approx(np.pi * radius**2, rel=0.05)
    x0, y0, x1, y1 = picture.boxes[0]
    assert (x0 + x1) / 2 == pytest.approx(20, abs=1)
    assert (y0 + y1) / 2 == pytest.approx(30, abs=1)
    assert x1 - x0 == pytest.approx(2 * radius, abs=2)


def test_relations_hold_and_objects_stay_inside() -> None:
    for scene in drawn(400):
        picture = scenes.render(scene, ART) if scene.relation else None
        for thing in scene.objects:
            assert thing.center[0] - thing.size / 2 + 1e-6 >= 0
            assert thing.center[1] + thing.size / 2 <= scene.height + 1e-6
        if picture is None:
            continue
        first, second = (((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in picture.boxes)
        holds = {
            "left of": first[0] < second[0],
            "right of": first[0] > second[0],
            "above": first[1] < second[1],
            "below": first[1] > second[1],
        }
        assert holds[str(scene.relation)]


def test_a_fixed_tenth_of_pairs_is_held_out_and_never_drawn() -> None:
    held = {(s, t) for s in scenes.SUBJECT_NAMES for t in scenes.STYLE_NAMES if scenes.held_out(s, t)}
    assert len(held) == 68
    assert scenes.held_out("fox", "watercolor") is (("fox", "watercolor") in held)
    shown = {(thing.subject, scene.style) for scene in drawn(2000) for thing in scene.objects}
    assert not shown & held
    rng = np.random.default_rng(0)
    only = [scenes.sample(rng, held=True) for _ in range(50)]
    assert {(scene.objects[0].subject, scene.style) for scene in only} <= held


def test_captions_say_what_is_drawn() -> None:
    for scene in drawn(1000):
        if not scene.caption:
            continue
        assert scene.objects[0].subject in scene.caption
        named = scene.caption.partition(", ")[2]
        assert named in ("", scene.style)
        assert not (named and not styles.STYLES[scene.style].named)
        if scene.relation:
            assert f" {scene.relation} " in scene.caption


@pytest.fixture(scope="module")
def pipeline():
    """The shipped model, loaded by stock diffusers."""
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(model_folder("tiny-flux"))


def test_captions_fit_and_subjects_split_into_pieces(pipeline) -> None:
    captions = [scenes.caption_of(scene) for scene in drawn(1000)]
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        lengths = [len(ids) for ids in tokenizer(captions).input_ids]
        assert max(lengths) <= text.TEXT_LENGTH
        split = [name for name in scenes.SUBJECT_NAMES if len(tokenizer.tokenize(name)) > len(name.split())]
        assert 20 <= len(split) <= 32
        assert tokenizer.unk_token_id not in tokenizer("a quick zebra 42").input_ids[1:-1]


def test_the_folder_is_a_stock_pipeline_that_makes_a_picture(pipeline) -> None:
    sampling = json.loads((model_folder("tiny-flux") / "attnctrl.json").read_text())
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == torch.float32
    size = sum(path.stat().st_size for path in model_folder("tiny-flux").rglob("*") if path.is_file())
    assert size < 16 * 2**20
    image = pipeline("a fox, watercolor", **{**sampling, "num_inference_steps": 2}).images[0]
    assert image.size == (64, 64)
    with pytest.raises(ValueError, match="tiny-flux"):
        model_folder("no-such-model")


def test_the_autoencoder_encodes_to_the_linear_code() -> None:
    images = np.stack(
        [scenes.render(scene, ART).image for scene in drawn(60) if (scene.width, scene.height) == (64, 64)]
    )
    code = PatchCode.fit(images)
    latents = code.encode(pixels(images))
    assert latents.shape == (len(images), 16, 16, 16)
    assert latents.var(dim=(0, 2, 3)).mean() == pytest.approx(1, rel=0.05)
    assert torch.equal(unpack(pack(latents), 16, 16), latents)
    assert np.abs(to_uint8(code.decode(latents)).astype(int) - images).mean() < 10
    assert measure(untrained(code), code, images)["latent_gap"] < 5e-3


def test_artwork_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"attnctrl embedded artwork"):
        artwork.load(tmp_path / "none.npz")
