"""Edit sets: what a line holds, the shipped ones, and PIE-Bench's folder."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctrl import ControlError, Region
from attnctrl.embedded.scenes import PAIRED, held_out
from attnctrl.embedded.styles import STYLES
from attnctrl.evals.edits.piebench import mask_of, read_piebench
from attnctrl.evals.edits.reading import SHIPPED, read_edits
from attnctrl.evals.edits.sets import words_in
from attnctrl.evals.runs.config import dumped, item_seed

LINE = {"id": "a", "kind": "change color", "source": "a red hat", "target": "a blue hat", "region": "red hat"}
TRUTH = {"before": {"subjects": ["hat"]}, "after": {"subjects": ["hat"]}}


def written(path: Path, *lines: dict) -> Path:
    path.write_text("\n".join(json.dumps(one) for one in lines))
    return path


def test_a_line(tmp_path):
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    parts = {"joined": "difference", "parts": [{"box": [0, 0, 1, 1]}, {"mask": "mask.png"}]}
    path = written(tmp_path / "own.jsonl", LINE, {**LINE, "id": "b", "region": parts, "seed": 7, "width": 64})
    one, two = read_edits(path)
    assert one.region == Region(words="red hat")
    assert (one.part, one.prompts, one.seed) == ("change color", ("a blue hat",), None)
    assert two.region.parts[1].mask.size == (16, 16), "read from beside the file"
    assert item_seed(3, two) == 7
    assert item_seed(3, one) == item_seed(3, one) != item_seed(4, one)
    stands_alone = tmp_path / "again.jsonl"
    stands_alone.write_text(dumped([one, two]))
    (tmp_path / "mask.png").unlink()
    assert dumped(read_edits(stands_alone)) == dumped([one, two])


BAD = {
    "no kind": ({"kind": None}, "kind"),
    "unknown kind": ({"kind": "recolour"}, "change color"),
    "word not there": ({"region": "blue hat"}, "the region's words 'blue hat' are not in the source 'a red hat'"),
    "word of a part": ({"region": {"parts": [{"words": "cap"}]}}, "'cap' are not in the source"),
    "half a word": ({"region": "ha"}, "'ha' are not in the source"),
    "two regions": ({"region": {"words": "hat", "box": [0, 0, 1, 1]}}, "give one of the four"),
    "empty": ({"target": ""}, "target"),
    "half the truth": ({"before": TRUTH["before"]}, "give both, or none"),
    "no relation": ({**TRUTH, "after": {"subjects": ["hat", "car"]}}, "need their relation"),
    "colors": ({**TRUTH, "after": {"subjects": ["hat"], "colors": ["red", "blue"]}}, "2 colors for 1 subjects"),
    "no picture": ({"picture": "no.png"}, "there is no picture at"),
    "no mask": ({"region": {"mask": "no.png"}}, "there is no picture at"),
    "seed": ({"seed": -1}, "seed"),
    "id": ({"id": "../x"}, "id"),
    "setting": ({"sead": 1}, "sead"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_a_fault_is_named_with_its_line(change, says, tmp_path):
    with pytest.raises(ControlError, match=r"own\.jsonl, line 2: ") as fault:
        read_edits(written(tmp_path / "own.jsonl", LINE, {**LINE, "id": "b", **change}))
    assert says in str(fault.value)


def test_no_edits_and_the_same_twice(tmp_path):
    with pytest.raises(ControlError, match="line 2: the id 'A' is line 1's already"):
        read_edits(written(tmp_path / "twice.jsonl", LINE, {**LINE, "id": "A"}))
    with pytest.raises(ControlError, match="line 1: an edit is a JSON object"):
        read_edits(written(tmp_path / "list.jsonl", [1]))
    with pytest.raises(ControlError, match="holds no edit"):
        read_edits(written(tmp_path / "none.jsonl"))
    with pytest.raises(ControlError, match="there are no edits 'embeded'"):
        read_edits("embeded")


def test_the_shipped_edits_are_of_what_the_models_know():
    found = read_edits("embedded")
    assert len(found) >= 200
    assert set(Counter(one.kind for one in found).values()) == {30}
    assert len({one.kind for one in found}) == 7
    for one in found:
        for prompt, shown in ((one.source, one.before), (one.target, one.after)):
            assert prompt.endswith(f", {shown.style}")
            assert STYLES[shown.style].named
            assert set(shown.subjects) <= set(PAIRED.subjects)
            assert all(name in prompt.split(", ")[0] for name in shown.subjects)
            assert not any(held_out(name, shown.style) for name in shown.subjects)
            assert len(set(shown.subjects)) == len(shown.subjects)
        assert one.source != one.target
        assert (one.region is None) == (one.kind == "change style")
        assert bool(list(words_in(one.region))) == (one.kind not in ("change style", "add"))


def test_the_shipped_edits_are_those_of_their_maker(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import make_edits

    assert dumped(make_edits.edits()) == SHIPPED.read_text(encoding="utf-8")
    sys.modules.pop("make_edits")


# PIE-Bench


def bench(folder: Path, **change: object) -> Path:
    (folder / "annotation_images" / "1_change").mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(folder / "annotation_images" / "1_change" / "0.jpg")
    entry = {
        "image_path": "1_change/0.jpg", "original_prompt": "a [round] cake on a table", "editing_type_id": "6",
        "editing_prompt": "a [square] cake on a  table", "editing_instruction": "make it square",
        "blended_word": "cake cake", "mask": [5130, 10, 6000, 2],
    }  # fmt: skip
    body = {key: value for key, value in {**entry, **change}.items() if value is not None}
    (folder / "mapping_file.json").write_text(json.dumps({"611000000001": body}))
    return folder


def test_piebench(tmp_path):
    (one,) = read_edits(bench(tmp_path))
    assert (one.id, one.kind) == ("611000000001", "change color")
    assert (one.source, one.target) == ("a round cake on a table", "a square cake on a table")
    assert one.picture.size == one.region.mask.size == (512, 512)
    mask = np.asarray(one.region.mask.convert("L")) > 127
    assert mask[10, 10:20].all()
    assert not mask[10, 9]
    assert not mask[10, 20]
    assert mask[0].all()
    assert mask[:, 511].all(), "its border counts as edited"
    assert mask.sum() == 4 * 511 + 12


def test_a_mask_beyond_the_picture_is_refused():
    assert np.asarray(mask_of([512 * 512 - 1, 1]))[511, 511] == 255
    for runs in ([512 * 512 - 1, 2], [-1, 3], [4, -1]):
        with pytest.raises(ValueError, match="lies beyond 512 x 512 px"):
            mask_of(runs)
    with pytest.raises(ValueError, match="pairs of start and length"):
        mask_of([1, 2, 3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask": None}, "'mask' is missing"),
        ({"mask": [1]}, "pairs"),
        ({"mask": "x"}, "entry '611000000001'"),
        ({"editing_type_id": "10"}, "is not 0 to 9"),
        ({"image_path": "2/no.jpg"}, "there is no picture"),
        ({"original_prompt": "[]"}, "source"),
    ],
    ids=lambda x: None if isinstance(x, str) else next(iter(x)),
)
def test_a_faulty_entry_is_named(change, says, tmp_path):
    with pytest.raises(ControlError, match=r"mapping_file\.json, entry '611000000001'") as fault:
        read_piebench(bench(tmp_path, **change))
    assert says in str(fault.value)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ControlError, match="is no folder of PIE-Bench"):
        read_edits(tmp_path)
    (tmp_path / "mapping_file.json").write_text("[]")
    with pytest.raises(ControlError, match="holds no edit"):
        read_edits(tmp_path)
