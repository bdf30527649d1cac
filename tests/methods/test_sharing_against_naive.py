"""StyleAligned and AlignedGen against dense float64 implementations written only for the tests."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from PIL import Image
from references.attention import adain, alignedgen_attention, apply_rope, dense_attention, stylealigned_attention
from references.flux import image_ids, reference_forward, rope_table, stock_rounding_site
from references.sample import Condition, reference_sample
from tiny import tiny_flux

from attnctrl import AlignedStyle, Falling, NaiveSharing, Reference, StyleAligned, Where, attached

GRID = (4, 6)
AXES = (4, 6, 6)
TEXT = 5
EVERY = Where(blocks="all")


def call_inputs(rows: int = 4, grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64) -> dict:
    g = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(rows, grid[0] * grid[1], 16, generator=g, dtype=dtype),
        "encoder_hidden_states": torch.randn(rows, TEXT, 16, generator=g, dtype=dtype),
        "pooled_projections": torch.randn(rows, 16, generator=g, dtype=dtype),
        "timestep": torch.full((rows,), 0.7, dtype=dtype),
        "img_ids": image_ids(*grid),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def ours(control, inputs: dict, step: int = 1, steps: int = 4, images_per_prompt: int = 1) -> torch.Tensor:
    pipe = tiny_flux()
    pipe.transformer.double()
    pipe.scheduler.set_timesteps(steps, mu=0.6)
    pipe.scheduler.set_begin_index(step)
    with torch.no_grad(), attached(pipe, control, images_per_prompt=images_per_prompt):
        return pipe.transformer(**inputs, return_dict=False)[0]


def naive(site, inputs: dict, blocks: set[int]) -> torch.Tensor:
    def chosen(index, *rest):
        return site(*rest) if index in blocks else stock_rounding_site(index, *rest)

    pipe = tiny_flux()
    with torch.no_grad():
        return reference_forward(pipe.transformer.double(), **inputs, site_fn=chosen)


def aligned_site(shift: float = GRID[1], **options):
    ref = rope_table(image_ids(*GRID, column_shift=shift), AXES)
    options = {"rope_dtype": torch.float32, **options}
    return lambda q, k, v, cos, sin, text: alignedgen_attention(q, k, v, cos, sin, *ref, text, **options)


def style_site(**options):
    def site(q, k, v, cos, sin, text):
        def rotate(x):
            return apply_rope(x, cos, sin, torch.float32)

        return stylealigned_attention(q, k, v, text_len=text, rotate=rotate, **options)

    return site


ALL, SINGLE = {0, 1, 2, 3, 4}, {2, 3, 4}
CASES = {
    "AlignedGen": (AlignedStyle(), aligned_site(), SINGLE),
    "AlignedGen, every block": (AlignedStyle(where=EVERY), aligned_site(), ALL),
    "lambda 0.9": (AlignedStyle(key_scale=0.9), aligned_site(lambda_=0.9), SINGLE),
    "no shift": (AlignedStyle(shift=(0, 0)), aligned_site(shift=0), SINGLE),
    "no AdaIN": (AlignedStyle(adain_queries=False, adain_keys=False), aligned_site(adain=False), SINGLE),
    "naive": (NaiveSharing(), aligned_site(shift=0, adain=False, lambda_=1.0), SINGLE),
    "blocks 1 and 3": (AlignedStyle(where=Where(blocks="1,3")), aligned_site(), {1, 3}),
    "strength 2": (AlignedStyle(strength=2.0), aligned_site(log_bias=math.log(2)), SINGLE),
    "StyleAligned": (StyleAligned(), style_site(), ALL),
    "score scale .5": (StyleAligned(key_scale=0.5), style_site(score_scale=0.5), ALL),
    "score shift log 2": (StyleAligned(strength=2.0), style_site(score_shift=math.log(2)), ALL),
    "AdaIN of values": (StyleAligned(adain_values=True), style_site(adain_v=True), ALL),
    "full sharing": (StyleAligned(share="all"), style_site(full_share=True), ALL),
    "every second block": (StyleAligned(where=Where(blocks="0-4/2")), style_site(), {0, 2, 4}),
}


@pytest.mark.parametrize(("control", "site", "blocks"), CASES.values(), ids=CASES.keys())
def test_one_call_equals_the_naive_one(control, site, blocks):
    inputs = call_inputs()
    expected = naive(site, inputs, blocks)
    plain = naive(lambda *a: stock_rounding_site(0, *a), inputs, blocks)
    assert (expected - plain).abs().max() > 1e-2, "the case does not tell methods apart"
    torch.testing.assert_close(ours(control, inputs), expected, atol=2e-6, rtol=2e-6)


def test_falling_scale_follows_sigma():
    pipe = tiny_flux()
    pipe.scheduler.set_timesteps(4, mu=0.6)
    sigma = float(pipe.scheduler.sigmas[1])
    inputs = call_inputs()
    expected = naive(aligned_site(lambda_=sigma**2), inputs, SINGLE)
    torch.testing.assert_close(ours(AlignedStyle(key_scale=Falling()), inputs), expected, atol=2e-6, rtol=2e-6)
    expected = naive(aligned_site(lambda_=1 + 0.2 * sigma), inputs, SINGLE)
    scale = Falling(start=1.2, end=1.0, power=1)
    torch.testing.assert_close(ours(AlignedStyle(key_scale=scale), inputs), expected, atol=2e-6, rtol=2e-6)


def test_half_strength_halves_odds_and_adain():
    def site(q, k, v, cos, sin, text):
        q, k = q.clone(), k.clone()
        for x in (q, k):
            x[1:, text:] = (x[1:, text:] + adain(x[1:, text:], x[:1, text:])) / 2
        inner = aligned_site(adain=False, log_bias=math.log(0.5))
        return inner(q, k, v, cos, sin, text)

    inputs = call_inputs()
    torch.testing.assert_close(
        ours(AlignedStyle(strength=0.5), inputs), naive(site, inputs, SINGLE), atol=2e-6, rtol=2e-6
    )


def test_chosen_heads_only():
    def site(q, k, v, cos, sin, text):
        shared = aligned_site()(q, k, v, cos, sin, text)
        rotated = (apply_rope(x, cos, sin, torch.float32) for x in (q, k))
        own = dense_attention(*rotated, v)
        heads = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=q.dtype)[:, None]
        return own + heads * (shared - own)

    inputs = call_inputs()
    control = AlignedStyle(where=Where(blocks="single", heads="H1 H3"))
    torch.testing.assert_close(ours(control, inputs), naive(site, inputs, SINGLE), atol=2e-6, rtol=2e-6)


def test_images_per_prompt_makes_separate_sets():
    inputs = call_inputs(rows=6)
    both = ours(AlignedStyle(), inputs, images_per_prompt=2)
    for j in (0, 1):
        rows = slice(j, None, 2)
        part = {k: v[rows] if k not in ("img_ids", "txt_ids") else v for k, v in inputs.items()}
        torch.testing.assert_close(both[rows], ours(AlignedStyle(), part), atol=1e-12, rtol=1e-12)


def test_two_controls_merge_like_joined_keys():
    inputs = call_inputs()
    once = AlignedStyle(adain_queries=False, adain_keys=False, key_scale=1.0)
    twice = [once, once.model_copy(update={"shift": (1, 0)})]
    columns = rope_table(image_ids(*GRID, column_shift=GRID[1]), AXES)
    rows = image_ids(*GRID) + torch.tensor([0.0, GRID[0], 0.0])
    rows = rope_table(rows, AXES)

    def site(q, k, v, cos, sin, text):
        turned = [apply_rope(k[:1, text:], *table, torch.float32) for table in (columns, rows)]
        q, own = (apply_rope(x, cos, sin, torch.float32) for x in (q, k))
        outs = [dense_attention(q[:1], own[:1], v[:1])]
        for row in range(1, len(q)):
            keys, values = (
                torch.cat([own[row : row + 1], *turned], 1),
                torch.cat([v[row : row + 1]] + [v[:1, text:]] * 2, 1),
            )
            outs.append(dense_attention(q[row : row + 1], keys, values))
        return torch.cat(outs)

    torch.testing.assert_close(ours(twice, inputs), naive(site, inputs, SINGLE), atol=2e-6, rtol=2e-6)


def conditions(pipe, prompts: list[str], grid: tuple[int, int]) -> Condition:
    with torch.no_grad():
        embeds, pooled, ids = pipe.encode_prompt(prompts, None, max_sequence_length=12)
    return Condition(embeds.double(), pooled.double(), ids.double(), image_ids(*grid).double())


def start_noise(seeds: list[int], grid: tuple[int, int]) -> torch.Tensor:
    shape = (1, 4, 2 * grid[0], 2 * grid[1])
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    return packed(noise)


def packed(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c).double()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_whole_run_with_a_picture_equals_the_naive_loop(cfg, latents_of):
    """The reference is a row of its own: its caption in the first pass, the negative text in the second."""
    grid = (6, 8)
    pipe = tiny_flux()
    picture = Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 40).convert("RGB")
    reference = Reference(picture=picture, caption="a cave", seed=11)
    with attached(pipe, AlignedStyle(reference=reference)):
        result = latents_of(pipe, n=2, steps=3, cfg=cfg, height=48, width=64)
    sigmas = pipe.scheduler.sigmas

    pixels = torch.tensor(list(picture.resize((64, 48), Image.Resampling.LANCZOS).tobytes()), dtype=torch.float32)
    pixels = pixels.reshape(1, 48, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        clean = (pipe.vae.encode(pixels).latent_dist.mode() - 0.1) * 0.8
    clean = packed(clean)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(11)).double()

    def renoise(i, sigma, x):
        return torch.cat([sigma * noise + (1 - sigma) * clean, x[1:]])

    ref = rope_table(image_ids(*grid, column_shift=grid[1]), AXES)

    def factory(step, sigma, which):
        def site(index, q, k, v, cos, sin, text):
            if index < 2:
                return stock_rounding_site(index, q, k, v, cos, sin, text)
            return alignedgen_attention(q, k, v, cos, sin, *ref, text, 1.1, rope_dtype=torch.float32)

        return site

    cond = conditions(pipe, ["a cave", "a fox", "a teapot"], grid)
    uncond = conditions(pipe, ["a rag"] * 3, grid) if cfg > 1 else None
    start = torch.cat([torch.zeros_like(clean), start_noise([0, 1], grid)])
    expected = reference_sample(pipe.transformer.double(), sigmas, start, cond, uncond, cfg, factory, renoise)[1:]
    assert all(a > b for a, b in pairwise(sigmas.tolist()))
    scale = expected.abs().max()
    assert (result - expected).abs().max() < 2e-4 * scale


def test_reference_row_equals_its_solo_run(pipe, latents_of):
    with attached(pipe, AlignedStyle()):
        together = latents_of(pipe, n=4, cfg=3.0)
    alone = latents_of(pipe, n=1, cfg=3.0)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_four_and_four_are_eight(pipe, latents_of):
    """The same reference prompt and seed leads two batches of 1 + 4; the targets equal those of one batch of 1 + 8."""
    from conftest import PROMPTS

    def part(numbers):
        with attached(pipe, AlignedStyle()):
            prompts = [PROMPTS[i] for i in numbers]
            return latents_of(pipe, n=len(numbers), seeds=numbers, prompt=prompts, cfg=2.0)

    whole, first, second = part(range(9)), part([0, 1, 2, 3, 4]), part([0, 5, 6, 7, 8])
    torch.testing.assert_close(torch.cat([first, second[1:]]), whole, atol=1e-5, rtol=1e-5)
