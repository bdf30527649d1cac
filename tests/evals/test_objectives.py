"""Objectives: known pictures in their known order, judges on true renders, tiny scorers by hand, texts refused."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from attnctrl.errors import ControlError
from attnctrl.evals import pixels
from attnctrl.evals.objectives import Models, objective

PURE = {
    "red": (255, 40, 50), "orange": (255, 129, 13), "yellow": (255, 225, 25), "green": (64, 255, 95),
    "blue": (51, 133, 255), "purple": (182, 89, 255), "pink": (255, 128, 189), "black": (0, 0, 0),
    "gray": (128, 128, 128), "white": (255, 255, 255),
}  # fmt: skip


def flat(rgb: tuple[int, ...], size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, tuple(rgb))


def noise(size: int = 64, spread: int = 127, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(128 - spread, 128 + spread, (size, size, 3))
    return Image.fromarray(values.astype(np.uint8))


def scores(text: str, *images: Image.Image, prompt: str = "a fox, comic") -> list[float]:
    return objective(text, "cpu")(images, [prompt] * len(images))


def image_of(value: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(value * 255, 0, 255).round().astype(np.uint8))


def test_oklab_of_known_colors() -> None:
    known = {(1, 1, 1): (1, 0, 0), (1, 0, 0): (0.6280, 0.2249, 0.1258), (0, 0, 1): (0.4520, -0.0325, -0.3115)}
    for rgb, lab in known.items():
        assert pixels.oklab(np.array(rgb, float)) == pytest.approx(lab, abs=1e-3)
    assert pixels.oklab(np.array([0.02, 0.02, 0.02]))[0] == pytest.approx((0.02 / 12.92) ** (1 / 3), abs=1e-3)


@pytest.mark.parametrize("name", PURE)
def test_each_color_is_found_where_it_is(name: str) -> None:
    found = dict(zip(PURE, scores(f"color:{name}", *(flat(rgb) for rgb in PURE.values())), strict=True))
    assert max(found, key=lambda other: found[other]) == name
    assert sorted(found.values())[-2] < 0.75 * found[name]
    half = Image.new("RGB", (16, 16), PURE["green" if name != "green" else "blue"])
    half.paste(flat(PURE[name], (16, 8)), (0, 0))
    rest = scores(f"color:{name}", flat(PURE["green" if name != "green" else "blue"]))[0]
    assert scores(f"color:{name}", half)[0] == pytest.approx((found[name] + rest) / 2)


def test_a_faint_tint_counts() -> None:
    tinted = [flat((128, 128, 128 + step)) for step in (0, 1, 4, 16, 64)]
    blue = scores("color:blue", *tinted)
    assert blue[0] == pytest.approx(0, abs=1e-4)
    assert all(low < high for low, high in pairwise(blue))


def test_light_chroma_and_contrast_have_known_values() -> None:
    black, gray, white = flat((0, 0, 0)), flat((128, 128, 128)), flat((255, 255, 255))
    checks = Image.new("L", (16, 16))
    checks.paste(255, (0, 0, 8, 16))
    assert scores("brightness", black, white, checks) == pytest.approx([0, 1, 0.5], abs=1e-3)
    assert scores("darkness", black, gray) == pytest.approx([1, 0.4], abs=2e-3)
    assert scores("contrast", gray, checks) == pytest.approx([0, 0.5], abs=1e-3)
    red = np.hypot(0.2249, 0.1258)
    assert scores("saturation", gray, flat((255, 0, 0))) == pytest.approx([0, red], abs=1e-3)


def test_colorfulness_is_hasler_and_suesstrunks() -> None:
    halves = np.zeros((2, 4, 3), np.uint8)
    halves[:, :2, 0], halves[:, 2:, 2] = 200, 100  # rg: 200, 0; yb: 100, -100
    expected = np.hypot(100, 100) + 0.3 * np.hypot(100, 0)
    assert scores("colorfulness", Image.fromarray(halves)) == pytest.approx([expected])
    assert scores("colorfulness", flat((90, 90, 90))) == pytest.approx([0])


def test_sharpness_falls_with_blur_and_not_with_size() -> None:
    dot = np.zeros((5, 5, 3))
    dot[2, 2] = 1
    laplacian = np.array([0, 1, 0, 1, -4, 1, 0, 1, 0])
    assert scores("sharpness", image_of(dot)) == pytest.approx([laplacian.var()])
    picture = noise(512)
    blurred = [picture.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2)]
    sharp = scores("sharpness", *blurred)
    assert sharp[0] > 4 * sharp[1] > 16 * sharp[2]
    large = blurred[2].resize((1024, 1024), Image.Resampling.BICUBIC)
    assert scores("sharpness", large)[0] == pytest.approx(sharp[2], rel=0.1)


def test_parts_combine() -> None:
    pictures = [flat(PURE["blue"]), flat(PURE["red"]), noise()]
    blue, bright = (np.array(scores(text, *pictures)) for text in ("color:blue", "brightness"))
    weighted = objective(" sum:0.7*color:blue + -.3*brightness")
    assert weighted.name == "sum:0.7*color:blue + -.3*brightness"
    assert weighted(pictures, [""] * 3) == pytest.approx(0.7 * blue - 0.3 * bright)
    nested = scores("sum:2*(harmonic:color:blue+brightness)+brightness", *pictures)
    assert nested == pytest.approx(2 * 2 * blue * bright / (blue + bright) + bright)
    least = scores("harmonic:brightness+(sum:-1*color:blue)", *pictures)
    assert least == pytest.approx(-blue)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour:blue", "did you mean color"),
        ("sharpnes", "did you mean sharpness"),
        ("sum:0.5*brightnes+contrast", "'brightnes'; did you mean brightness"),
        ("frobnicate", "known are color"),
        ("color:bleu", "did you mean blue"),
        ("color", "write color:COLOR"),
        ("contrast:3", "takes nothing"),
        ("sum:contrast+", "empty"),
        ("sum:(contrast+sharpness", "partner"),
        ("harmonic:2*contrast+sharpness", "no weights"),
        ("no.such.module:score", "PYTHONPATH"),
        ("numpy:sqroot", "no function sqroot"),
        ("math:sqrt", "of Python's own library"),
        ("like:/no/such.png", "no picture at"),
        ("clip:/no/such", "openai/clip-vit-large-patch14, not at /no/such"),
        ("pickscore", "hf download yuvalkirstain/PickScore_v1"),
        ("aesthetic", "ATTNCTRL_WEIGHTS is not set"),
        ("text:red", "clip needs the weights"),
    ],
)
def test_what_cannot_be_made_says_the_way_out(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNCTRL_WEIGHTS", raising=False)
    with pytest.raises(ControlError, match=re.escape(said)) as fault:
        objective(text)
    assert "\n" not in str(fault.value)


def test_users_functions_are_found_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def width(images, prompts): return [i.width + len(p) for i, p in zip(images, prompts)]\n"
    more = "def short(images, prompts): return [1.0]\ndef odd(images, prompts): return [float('nan')] * len(images)\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "measures.py").write_text(code + more + "def none(images, prompts): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    pictures = [flat((0, 0, 0)), flat((0, 0, 0), (20, 8))]
    assert objective("mine.measures:width")(pictures, ["ab", ""]) == [18, 20]
    for name in ("short", "odd", "none"):
        with pytest.raises(ControlError, match=f"mine.measures:{name}"):
            scores(f"mine.measures:{name}", *pictures)
    with pytest.raises(ControlError, match="1 pictures came with 2 prompts"):
        objective("contrast")(pictures[:1], ["", ""])
    assert objective("contrast")([], []) == []


def test_the_base_install_is_enough_to_parse(tmp_path: Path) -> None:
    noise().save(tmp_path / "target.png")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['cv2', 'efficientnet_lite_pytorch', 'torchvision']))\n"
        "from attnctrl.evals.objectives import objective\nfrom attnctrl.errors import ControlError\n"
        "objective('sum:color:blue+0.5*sharpness')\n"
        "for text in ('style:comic', 'quality', 'like:' + sys.argv[1]):\n"
        "    try: objective(text, 'cpu')\n    except ControlError as fault: print(fault)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "target.png")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("attnctrl[")[-1] for line in said] == ["train]'", "train,eval]'", "eval]'"]


def ball(style: str, hue: float = 0.2, subject: str = "apple", size: int = 64) -> Image.Image:
    """A shaded red ball (an apple) or a yellow star, rendered in a style of the embedded world."""
    cv2 = pytest.importorskip("cv2", reason="the embedded world is drawn with opencv: install attnctrl[train]")
    from attnctrl.embedded import canvas, scenes

    y, x = np.mgrid[:128, :128]
    alpha = np.clip(60 - np.hypot(y - 64, x - 64), 0, 1)
    light = 1.15 - np.hypot(y - 40, x - 50)[..., None] / 300
    paint = np.array([200, 60, 60] if subject == "apple" else [250, 200, 40])
    if subject == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 26, 60)
        corners = np.stack([64 + radii * np.cos(turns), 66 + radii * np.sin(turns)], 1).round().astype(np.int32)
        alpha = cv2.fillPoly(np.zeros((128, 128)), [corners], 1.0)
    art = np.dstack([np.clip(light * paint, 0, 255), alpha * 255]).astype(np.uint8)
    thing = scenes.Object(subject, None, "flat", False, 0.0, 0.0, (size / 2, size / 2), 0.8 * size)
    params = canvas.StyleParams(hue, 0.3, 0.3, 0.3, 0.2)
    scene = scenes.Scene(size, size, (thing,), None, None, style, params, "", 1)
    return Image.fromarray(scenes.render(scene, {f"flat/{subject}": art}).image)


STYLES = ("flat icon", "comic", "watercolor", "line art", "neon sign")


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_likeliest_in_its_own_renders(style: str) -> None:
    from attnctrl.embedded.judge import Judge
    from attnctrl.embedded.latents import pixels as tensor

    pictures = {name: ball(name) for name in STYLES}
    read = dict(zip(STYLES, scores(f"style:{style}", *pictures.values()), strict=True))
    assert max(read, key=lambda name: read[name]) == style
    assert all(value <= 0 for value in read.values())
    judge = Judge.load()
    logits, _ = judge.net(tensor(np.asarray(pictures["comic"])[None]))
    assert read["comic"] == pytest.approx(logits.log_softmax(1)[0, judge.styles.index(style)].item(), abs=1e-4)


def test_quality_is_subject_and_style_of_the_prompt() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    right, other, late = ball("flat icon"), ball("flat icon", subject="star"), ball("neon sign")
    mixed = [right, other, late, ball("flat icon", size=96)]
    prompt = "An apple on a beach, Flat  icon"
    quality, subject = (scores(text, *mixed, prompt=prompt) for text in ("quality", "subject"))
    style = scores("style:flat icon", *mixed)
    assert quality == pytest.approx(np.add(subject, style), abs=1e-6)
    assert subject[0] > max(-0.3, subject[1] + 2)
    assert quality[0] > max(quality[1], quality[2]) + 1
    assert subject[3] > subject[1] + 1
    stars = scores("subject", *mixed, prompt="a star, comic")
    assert stars[1] > max(stars[0], stars[2])
    assert scores("sum:subject+style:flat icon", *mixed, prompt=prompt) == pytest.approx(quality)


def test_prompts_are_read() -> None:
    pytest.importorskip("cv2", reason="install attnctrl[train]")
    from attnctrl.evals.judged import Asked, read_prompt

    assert read_prompt("a fox left of a red key on a beach,  Neon sign") == Asked(("fox", "key"), "neon sign")
    assert read_prompt("3d render, a star above a star.") == Asked(("star",), "3d render")
    assert read_prompt("a comic foxtrot") == Asked((), None)


def test_a_pair_needs_both_its_subjects() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    from attnctrl.embedded.subjects import SUBJECTS, Seen
    from attnctrl.evals.judged import subject_scores

    where = np.zeros((3, len(SUBJECTS) + 1, 8, 8))
    where[:, -1] = 1
    for row, cells in enumerate(((16, 16), (24, 8), (0, 0))):
        flattened = where[row].reshape(len(SUBJECTS) + 1, 64)
        flattened[SUBJECTS.index("fox"), : cells[0]] = flattened[SUBJECTS.index("key"), 40 : 40 + cells[1]] = 1
    where[2, SUBJECTS.index("fox"), 0, 0] = where[2, SUBJECTS.index("key"), 0, 1] = 0.1
    read: Any = lambda images, scales: Seen(where, where)  # noqa: E731
    assert subject_scores(read, where, [("fox", "key")] * 3) == pytest.approx(np.log([1, 0.5, 0.2]))
    assert subject_scores(read, where, [("fox",)] * 3) == pytest.approx(np.log([0.5, 0.75, 0.1]))


@pytest.mark.parametrize(
    ("text", "prompt", "size", "said"),
    [
        ("quality", "a fox", 64, "names no style"),
        ("quality", "a bicycle, comic", 64, "names no subject"),
        ("style:comic", "", 512, "up to 128 px"),
        ("style:comic", "", 60, "multiples of 8"),
        ("style:cubism", "", 64, "no style is called"),
    ],
)
def test_judges_refuse_what_they_do_not_know(text: str, prompt: str, size: int, said: str) -> None:
    pytest.importorskip("cv2", reason="install attnctrl[train]")
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    with pytest.raises(ControlError, match=said):
        scores(text, flat((9, 9, 9), (size, size)), prompt=prompt)


def test_likeness_is_of_style_and_not_of_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    for style in ("flat icon", "neon sign", "watercolor"):
        target = ball(style)
        target.save(tmp_path / "target.png")
        others = [ball(other) for other in STYLES if other != style]
        star, same, *rest = scores(f"like:{tmp_path}/target.png", ball(style, subject="star"), target, *others)
        assert same == pytest.approx(1)
        assert 1 > star > max(rest) + 0.05
    hues = scores(f"like:{tmp_path}/target.png", ball("watercolor", 0.25, "star"), ball("watercolor", 0.7, "star"))
    assert hues[0] > hues[1]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scores("like:~/target.png", target) == pytest.approx([1])
    large = target.resize((300, 300), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png")
    assert scores(f"like:{tmp_path}/large.png", target)[0] > 0.8


def test_styles_are_compared_at_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnctrl.embedded import features
    from attnctrl.evals.judged import Likeness

    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(features, "FeatureMaps", lambda: lambda x: (seen.append(x.shape), torch.ones(1, 396, 8, 8))[1])
    like = Likeness(flat((9, 9, 9), (300, 300)), Models("cpu"))
    values = like([flat((9, 9, 9), size) for size in ((64, 48), (512, 384), (64, 64), (24, 30))], [""] * 4)
    shapes = [(64, 64), (48, 64), (256, 256), (192, 256), (64, 64), (32, 32), (32, 24)]
    assert seen == [(1, *shape, 3) for shape in shapes]
    assert values == [1, 1, 1, 1]


def test_the_worlds_colors_are_these() -> None:
    pytest.importorskip("cv2", reason="install attnctrl[train]")
    from attnctrl.embedded.colors import COLORS

    assert {**pixels.HUES, "gray": (0.0, 0.0)} == COLORS
