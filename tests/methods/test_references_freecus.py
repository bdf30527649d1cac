"""The FreeCus reference against the authors' own numbers (tests/data/freecus.npz), diffusers and plain attention."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from references.attention import apply_rope, dense_attention
from references.freecus import Subject, calculate_mu, freecus_attention, pivotal_attention, reference_sigma
from references.sd3_sharing import text_first
from test_references import bshd, gap, load
from test_references_sd3 import IMAGE, TEXT, qkv
from torch import Tensor

TOL = 1e-5  # of the parity data's README


@pytest.mark.parametrize("kind", ["single", "double"])
@pytest.mark.parametrize(("saved", "lambda_"), [("s1p1", 1.1), ("s1p0", 1.0)])
def test_freecus_parity(kind: str, saved: str, lambda_: float) -> None:
    """The authors' numbers (512 text tokens, of which 9 ask), and how far plausible mistakes lie."""
    z, _ = load("freecus")
    table = z["image_rope_cos"], z["image_rope_sin"]
    q, k, v, ref_k, ref_v = (bshd(z[f"{kind}_{x}"]).clone() for x in ("q", "k", "v", "ref_k_image", "ref_v_image"))
    for x, text in ((q, 9), (k, 512), (ref_k, 0)):
        x[:, text:] = apply_rope(x[:, text:], *table)
    fg, expected = z["fg_indices"], z[f"{kind}_out_{saved}"]
    if lambda_ == 1.1:
        assert gap(lambda_ * ref_k[:, fg], bshd(z[f"{kind}_stored_key"])) < TOL
        assert gap(ref_v[:, fg], bshd(z[f"{kind}_stored_value"])) == 0
    text, image = ((k[:, part], v[:, part]) for part in (slice(0, 512), slice(512, None)))

    def distance(shared: list, lambda_: float = lambda_, text: tuple[Tensor, Tensor] = text) -> float:
        return gap(pivotal_attention(q, text, image, shared, lambda_).flatten(2), expected)

    right = (ref_k[:, fg], ref_v[:, fg], 0.0)
    assert distance([right]) < TOL
    assert distance([(ref_k, ref_v, 0.0)]) > 0.05  # not the foreground alone
    assert distance([(*right[:2], math.log(1.1))]) > 5e-3  # no log-bias of its own
    if lambda_ == 1.1:
        assert distance([right], 1.0) > 0.05
        assert distance([right], text=(text[0] / 1.1, text[1])) > 0.05  # the text keys unscaled
    assert gap(dense_attention(q, k, v).flatten(2), z[f"{kind}_out_nonvital"]) < TOL


def rotation(text_len: int) -> tuple[Tensor, Tensor]:
    """An identity on the text and distinct angles on the image, [S, D]."""
    angle = torch.arange(1.0, IMAGE + 1, dtype=torch.float64)[:, None] * torch.linspace(1, 0.1, 8).double()
    angle = torch.cat([torch.zeros(text_len, 8, dtype=torch.float64), angle]).repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


def test_freecus_by_hand_with_two_subjects() -> None:
    """Rows 0 and 2 are references, 1 and 3 targets; strength 2 is a second copy of that foreground."""
    q, k, v = qkv(4)
    table = rotation(TEXT)
    few, many = torch.tensor([3, 9, 20]), torch.arange(4, 16)
    subjects = [Subject(0, many), Subject(2, few, math.log(2))]
    out = freecus_attention(q, k, v, subjects, TEXT, 1.2, rotate=lambda x: apply_rope(x, *table))
    q, k = apply_rope(q, *table), apply_rope(k, *table)
    plain = dense_attention(q, k, v)
    assert gap(out[[0, 2]], plain[[0, 2]]) < 1e-12
    for row in (1, 3):
        scaled = k[row].clone()
        scaled[:TEXT] *= 1.2
        keys = torch.cat([scaled, 1.2 * k[0, TEXT + many], 1.2 * k[2, TEXT + few], 1.2 * k[2, TEXT + few]])
        values = torch.cat([v[row], v[0, TEXT + many], v[2, TEXT + few], v[2, TEXT + few]])
        assert gap(out[row], dense_attention(q[[row]], keys[None], values[None])[0]) < 1e-12
        assert gap(out[row], plain[row]) > 0.1


def test_freecus_orders_and_groups() -> None:
    """[image | text] gives the same as [text | image]; a doubled batch is its halves one by one."""
    q, k, v = qkv(6, seed=3)
    subjects = [Subject(0, torch.arange(4, 16)), Subject(1, torch.arange(3), 0.5)]
    turned = [text_first(x, IMAGE) for x in (q, k, v)]
    sd3 = freecus_attention(q, k, v, subjects, TEXT, image_first=True, groups=2)
    assert gap(text_first(sd3, IMAGE), freecus_attention(*turned, subjects, TEXT, groups=2)) < 1e-12
    for rows in (slice(0, 3), slice(3, 6)):
        half = freecus_attention(q[rows], k[rows], v[rows], subjects, TEXT, image_first=True)
        assert gap(half, sd3[rows]) < 1e-12
    assert gap(freecus_attention(q, k, v, subjects, TEXT, image_first=True)[3:], sd3[3:]) > 0.1


@pytest.mark.parametrize("image_first", [False, True])
def test_freecus_reduces_to_plain_attention(image_first: bool) -> None:
    q, k, v = qkv(3, seed=4)
    plain = dense_attention(q, k, v)
    absent = [Subject(0, torch.tensor([], dtype=torch.long))]
    faint = [Subject(0, torch.arange(5), -math.inf)]
    for subjects in (absent, faint):
        assert gap(freecus_attention(q, k, v, subjects, TEXT, 1.0, image_first=image_first), plain) < 1e-12
        scaled = freecus_attention(q, k, v, subjects, TEXT, 1.1, image_first=image_first)
        assert gap(scaled[:1], plain[:1]) < 1e-12
        assert gap(scaled[1:], plain[1:]) > 1e-2  # the text keys of targets are scaled all the same
    present = freecus_attention(q, k, v, [Subject(0, torch.arange(5))], TEXT, 1.0, image_first=image_first)
    assert gap(present[1:], plain[1:]) > 0.1


def test_calculate_mu() -> None:
    _, meta = load("freecus")
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    intended = [meta["config"]["mu"][f"{side}_intended"] for side in (512, 1024)]
    assert [calculate_mu(n, config) for n in (1024, 4096)] == pytest.approx(intended, abs=1e-12)
    assert calculate_mu(777, config) == pytest.approx(calculate_shift(777), abs=1e-12)
    assert calculate_mu(777, FlowMatchEulerDiscreteScheduler(shift=3.0).config) == math.log(3)


def test_reference_sigma() -> None:
    """The stock schedule at -mu, from the schedule at +mu; the authors' own; SD3's fixed shift; both ends stay."""
    z, meta = load("freecus")
    s = torch.linspace(1, 1 / 30, 30, dtype=torch.float64)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    named = zip(z["ref_sigmas_512code_512intended_1024code_1024intended"], meta["config"]["mu"].values(), strict=True)
    for saved, mu in named:
        stock = math.exp(mu) / (math.exp(mu) + 1 / s - 1)
        ours = reference_sigma(stock, mu)
        assert gap(ours, saved) < 1e-6
        assert (ours[1:] < stock[1:]).all()
        levels = []
        for sign in (1, -1):
            scheduler.set_timesteps(sigmas=s.tolist(), mu=sign * mu)
            levels.append(scheduler.sigmas.double())
        assert gap(reference_sigma(levels[0], mu), levels[1]) < 1e-6
    fixed = []
    for shift in (3.0, 1 / 3):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=s.tolist())
        fixed.append(scheduler.sigmas.double())
    assert gap(reference_sigma(fixed[0], math.log(3)), fixed[1]) < 1e-6
    assert [reference_sigma(x, 1.15) for x in (0.0, 1.0)] == [0.0, 1.0]
    assert reference_sigma(0.6, 0.0) == 0.6
