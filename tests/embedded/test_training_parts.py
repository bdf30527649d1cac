"""Parts of training: attention that is plain within a context only, orthogonal updates, what stands under a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="the embedded world is drawn with opencv: install attnctrl[train]")

from test_embedded import ART

from attnctrl.embedded import canvas, dataset, scenes
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.fast import fast
from attnctrl.embedded.muon import Muon, orthogonal
from attnctrl.embedded.naming import Naming

ATTENTION = torch.nn.functional.scaled_dot_product_attention


def inside_then_fail(q: torch.Tensor) -> None:
    with fast():
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        raise KeyError


def test_plain_attention_is_attention_and_goes_when_left() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    wanted = [ATTENTION(q, k, v), ATTENTION(q, k, v, attn_mask=mask), ATTENTION(q, k, v, is_causal=True)]
    with fast():
        plain = torch.nn.functional.scaled_dot_product_attention
        assert plain is not ATTENTION
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        found = [plain(q, k, v), plain(q, k, v, attn_mask=mask), plain(q, k, v, is_causal=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.03, rtol=0.03)
    with pytest.raises(KeyError):
        inside_then_fail(q)
    assert torch.nn.functional.scaled_dot_product_attention is ATTENTION
    assert not torch.is_autocast_enabled("cpu")
    with fast(False):
        assert torch.nn.functional.scaled_dot_product_attention is ATTENTION


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 0.35), (torch.bfloat16, 0.4)])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 64)])
def test_updates_are_near_orthogonal(shape: tuple[int, ...], dtype: torch.dtype, within: float) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moved = orthogonal(matrices, dtype=dtype)
    assert moved.shape == shape
    assert moved.dtype == torch.float32
    values = torch.linalg.svdvals(moved)
    assert (values[:, 0] - 1).abs().max() < within
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (u @ vh).flatten(), dim=0) > 0.9


def test_muon_moves_each_matrix_against_its_gradient() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    optimizer = Muon(parameters, lr=0.1)
    for parameter in parameters[:2]:
        parameter.grad = torch.randn(8, 8)
    optimizer.step()
    for parameter in parameters[:2]:
        assert (parameter.detach() * parameter.grad).sum() < 0
    assert torch.equal(parameters[2].detach(), torch.zeros(8, 8))


def test_what_stands_under_a_token_is_known() -> None:
    things = (
        scenes.Object("key", "blue", "flat", False, 0.0, 0.0, (16.0, 32.0), 30.0),
        scenes.Object("fox", None, "flat", False, 0.0, 0.0, (48.0, 32.0), 30.0),
    )
    params = canvas.StyleParams(0, 0, 0, 0, 0)
    scene = scenes.Scene(64, 64, things, "left of", None, "comic", params, "a blue key left of a fox, comic", 0)
    subjects, colors = dataset.content(scene, scenes.render(scene, ART))
    assert subjects.shape == (8, 8)
    assert subjects[4, 2] == 1 + scenes.SUBJECT_NAMES.index("key")
    assert subjects[4, 6] == 1 + scenes.SUBJECT_NAMES.index("fox")
    assert colors[4, 2] == 1 + list(COLORS).index("blue")
    assert colors[4, 6] == subjects[0, 0] == 0
    assert set(np.unique(subjects)) == {0, subjects[4, 2], subjects[4, 6]}


def test_batches_have_as_many_pairs_as_asked(tmp_path: Path) -> None:
    from attnctrl.embedded import model_folder
    from attnctrl.embedded.latents import PatchCode
    from attnctrl.embedded.model import Tokens

    np.savez(tmp_path / "artwork.npz", **ART)
    dataset.build(tmp_path / "data", tmp_path / "artwork.npz", 240, 0, 1, scenes.PAIRED)
    tokens, code = Tokens.load(model_folder("tiny-flux")), PatchCode.load(model_folder("tiny-flux") / "code.npz")
    for pairs in (0.0, 1.0):
        batches = dataset.Batches(tmp_path / "data", tokens, code, 8, 0, pairs)
        for step in range(12):
            batch = batches[step]
            words = [tokens.clip.decode(ids) for ids in batch.clip_ids]
            related = [any(f" {word} " in text for word in scenes.RELATIONS) for text in words]
            if batch.latents.shape[2:] == (16, 16):
                assert all(related) if pairs else not any(related)
            assert batch.maps.shape == (8, 2, batch.latents.shape[2] // 2, batch.latents.shape[3] // 2)


def test_the_naming_head_reads_the_watched_block_and_teaches_what_comes_before() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return text, self.layer(image)

    torch.manual_seed(0)
    first, second, naming = Block(), Block(), Naming(4)
    naming.watch(first)
    image = torch.randn(2, 6, 4)
    second(*first(torch.zeros(2, 1, 4), image))
    naming(torch.ones(2, 2, 2, 3, dtype=torch.uint8)).backward()
    assert first.layer.weight.grad is not None
    assert second.layer.weight.grad is None
    assert naming.subjects.weight.grad is not None
