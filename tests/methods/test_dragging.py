"""Object dragging against dense float64 attention with every key, bias and place written out."""

from __future__ import annotations

import math

import pytest
import torch
from editing import CLOSE, At, Case
from references.attention import apply_rope, dense_attention
from references.dragging import anchored, dragged_attention, matched
from references.flux import rope_table

from attnctrl import ControlError, Drag, Region
from attnctrl.registry import parse_control

MODELS = ("FLUX", "SD3", "SD3.5")
REGION = Region(box=(0, 0, 0.5, 0.5))
OBJECT = [0, 1, 2, 6, 7, 8]  # rows 0-1, columns 0-2 of 4 x 6
BY = {"by": (0.34, 0.25)}  # two columns, one row
BOX = {"to": (0.5, 0.25, 1.0, 1.0)}  # rows 1-3, columns 3-5: half as tall again
TARGETS = {"by": [8, 9, 10, 14, 15, 16], "to": [9, 10, 11, 15, 16, 17, 21, 22, 23]}
FROM = {"by": [0, 1, 2, 6, 7, 8], "to": [0, 1, 2, 6, 7, 8, 6, 7, 8]}
STANDS = {
    "by": [(y + 1.0, x + 2.0) for y in (0, 1) for x in (0, 1, 2)],
    "to": [((y + 0.5) * 1.5 + 0.5, x + 3.0) for y in (0, 1) for x in (0, 1, 2)],
}


def nearest(place: int, ground: list[int]) -> int:
    return min(ground, key=lambda i: ((i // 6 - place // 6) ** 2 + (i % 6 - place % 6) ** 2, i))


def site(case: Case, goal: str, *, tau: float | None, share: float = 1.0, strength: float = 1.0, words: str = ""):
    """Rows [source, edit] of each half; tau None: matched."""
    target, odds = TARGETS[goal], share * strength
    ground = [i for i in range(24) if i not in OBJECT]
    places = [nearest(i, ground) if i in OBJECT else i for i in range(24)]
    for place, token in zip(target, FROM[goal], strict=True):
        places[place] = token

    def attention(at: At) -> torch.Tensor:
        q, k = at.rotate(at.q), at.rotate(at.k)
        out = dense_attention(q, k, at.v)
        for row in range(1, len(q), 2):
            source = row - 1
            theirs = [x[source, at.image] for x in (at.k, k, at.v)]
            keys = theirs[1][OBJECT]
            if case.flux:
                ids = torch.tensor([(0.0, *place) for place in STANDS[goal]])
                keys = apply_rope(theirs[0][OBJECT][None], *rope_table(ids, (4, 6, 6)), torch.float32)[0]
            length = q.shape[1]
            bias = torch.full((length, length + len(OBJECT) + len(ground)), -math.inf, dtype=q.dtype)
            bias[:, :length] = 0
            for i in range(24):
                query = at.image.start + i
                if i in target:
                    ratio = odds * len(target) / len(OBJECT)
                    bias[query, length : length + len(OBJECT)] = math.log(ratio) if ratio else -math.inf
                    continue
                bias[query, length + len(OBJECT) :] = math.log(odds) if odds else -math.inf
                if words and at.joint and (not case.guided or row > 1):
                    for column in case.columns(words):
                        left = 1 - strength
                        bias[query, at.text.start + column] = math.log(left) if left else -math.inf
            shared = (keys, theirs[2][OBJECT]), (theirs[1][ground], theirs[2][ground])
            new = dragged_attention(q[row], (k[row], at.v[row]), *shared, bias)
            image, own = new[at.image], out[source, at.image]
            better = matched(image, own, target, OBJECT) if tau is None else anchored(image, own, places, tau)
            new[at.image] = image + strength * (better - image)
            out[row] = new
        return out

    return attention


CASES = {
    "anchored": ("by", BY, 1, {"tau": 0.25}, {}),
    "anchored into a box": ("to", BOX, 2, {"tau": 0.5}, {}),
    "matched": ("by", BY, 4, {"tau": None}, {}),
    "matched in a box, more of the source": ("to", BOX, 9, {"tau": None, "share": 3.0}, {"share": 3.0}),
    "nothing shared": ("by", BY, 0, {"tau": 0.0, "share": 0.0}, {"share": 0.0}),
    "its words closed": ("by", BY, 4, {"tau": None, "words": "fox"}, {"words": "fox"}),
    "half strength": ("by", BY, 1, {"tau": 0.25, "strength": 0.5, "words": "fox"}, {"strength": 0.5, "words": "fox"}),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("goal", "where", "step", "naive", "given"), CASES.values(), ids=CASES)
def test_equals_the_dense_one(model, goal, where, step, naive, given):
    case = Case(model, step=step)
    expected = case.naive(site(case, goal, **naive))
    assert (expected - case.stock()).abs().max() > 1e-3, "the case shows nothing"
    torch.testing.assert_close(case.ours(Drag(region=REGION, anchor=0.4, **where, **given)), expected, **CLOSE)


def test_under_guidance_words_are_closed_in_rows_with_prompts():
    case = Case("SD3", guided=True)
    expected = case.naive(site(case, "by", tau=0.25, words="fox"))
    torch.testing.assert_close(case.ours(Drag(region=REGION, words="fox", anchor=0.4, **BY)), expected, **CLOSE)


def test_zero_strength_is_bit_equal_and_processors_are_back():
    case = Case("FLUX", guests=0)
    assert torch.equal(case.ours(Drag(region=REGION, strength=0, **BY)), case.stock())
    assert all("Controlled" not in type(one).__name__ for one in case.pipe.transformer.attn_processors.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [("drag", "say where the object goes"), ("drag:by=0:1,to=0:0:1:1", "say where"), ("drag:to=0:0:2:1", "0 to 1")],
)
def test_a_goal_that_cannot_be_read_is_refused(text, said):
    with pytest.raises(ControlError, match=said):
        parse_control(text)


def test_a_drag_of_nothing_is_refused():
    with pytest.raises(ControlError, match="moves an object, and none is given"):
        Case("FLUX").ours(Drag(**BY))
