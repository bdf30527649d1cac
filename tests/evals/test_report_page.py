"""The report's page: loads nothing, escapes all, tells what is missing, shows the summary's figures, worst sets first."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctrl import ControlError
from attnctrl.evals.metrics.kinds import FRECHET, says
from attnctrl.evals.runs.arms import Arm, arms
from attnctrl.evals.runs.config import SETS, Row, RunConfig, digest, dumped, picture_file
from attnctrl.evals.runs.finished import Finished, read_run
from attnctrl.evals.runs.page import GAP, TILE, montage, page, signed
from attnctrl.evals.runs.plot import LETTER, LINE, axis, sweep_plots, tradeoff
from attnctrl.evals.runs.sets import StyleSet
from attnctrl.evals.runs.summary import ArmSummary, Figure, Summary, costs, summarise, worst_first

EVIL = "<script>alert('fox')</script> & “an owl”"
AXES = ("style-agreement", "subject-as-asked", "leakage", "lite-style", "lite-diversity")
METHODS = (("plain", "stylealigned", "copy", "alignedgen"), ("strength=0.1,0.4",))
FAILURE = "there is no block 99 in <tiny>; name some of 0 to 7"


def finished(
    folder: Path,
    methods: tuple[Arm, ...] = arms(*METHODS),
    count: int = 5,
    metrics: tuple[str, ...] = AXES,
) -> Finished:
    """A run whose last arm failed at the first set and lacks the last one; the sets grow better with their number."""
    folder.mkdir()
    dice = np.random.default_rng(1)
    reference = Image.new("RGB", (300, 200), "navy")
    sets = [
        StyleSet(
            id=f"set-{n}",
            prompts=(EVIL, "a key", "a fox", "a jug")[: 3 + n % 2],
            reference=reference if n == 1 else None,
        )
        for n in range(count)
    ]
    config = RunConfig(
        model="tiny", sets="/somewhere/own.jsonl", sets_digest=digest(sets), arms=methods, baseline="plain",
        metrics=(*metrics, FRECHET),
    )  # fmt: skip
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / SETS).write_text(dumped(sets))
    lines = []
    for number, arm in enumerate(methods):
        for at, one in enumerate(sets):
            row = Row(set=one.id, arm=arm.name, seed=70 + at, seconds=1.5 + number / 8, peak_mib=512)
            if arm is methods[-1] and at in (0, count - 1):
                if at == 0:
                    lines.append(row.model_copy(update={"failed": FAILURE}))
                continue
            files = {}
            for n in range(len(one.prompts)):
                name = picture_file(arm, one.id, n)
                body = BytesIO()
                Image.fromarray(dice.integers(9 * number, 9 * number + 50, (16, 16, 3), dtype=np.uint8)).save(
                    body, "PNG"
                )
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(body.getvalue())
                files[name] = hashlib.sha256(body.getvalue()).hexdigest()
            values = {
                name: round(
                    0.3 + 0.05 * number + 0.08 * at + (0.5 if name == "lite-diversity" else 0.02) * dice.random(), 4
                )
                for name in metrics
            }
            lines.append(row.model_copy(update={"pictures": files, "values": values}))
    text = "".join(json.dumps({"id": f"{row.arm}/{row.set}", "rows": [row.model_dump()]}) + "\n" for row in lines)
    (folder / "results-0.jsonl").write_text(text)
    return read_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Finished:
    return finished(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def summary(run) -> Summary:
    return summarise(run)


@pytest.fixture(scope="module")
def text(run, summary) -> str:
    return page(run, summary, costs(run))


class Parsed(HTMLParser):
    """Tags with attributes in order, their text in `said`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.said.append((self.tags[-1][0] if self.tags else "", data.strip()))

    def of(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [own for kind, own in self.tags if kind == tag and name in ["", *(own.get("class") or "").split()]]


def words(text: str) -> str:
    """What a reader sees, spaces made one."""
    return " ".join(" ".join(data for tag, data in Parsed(text).said if tag not in ("script", "style")).split())


def test_nothing_is_loaded_and_nothing_is_a_program(text):
    parsed = Parsed(text)
    loaded = [
        own[name] for _, own in parsed.tags for name in ("src", "href", "srcset", "action", "poster") if name in own
    ]
    assert loaded
    assert all(one.startswith("data:image/webp;base64,") for one in loaded)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|import\(", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src 'none'" in text
    assert len(parsed.of("script")) == 2
    assert "alert(" not in "".join(data for tag, data in parsed.said if tag == "script")
    assert [data for tag, data in parsed.said if tag == "li"].count(EVIL) == 5
    assert "/somewhere" not in text


def test_what_is_missing_or_failed_is_said(text, run):
    said = words(text)
    assert run.missing == 1
    assert "Not finished: 1 of 30 items are missing." in said
    assert "1 of 30 items failed" in said
    assert "What failed: 1 sentence" in said
    assert f"{FAILURE} alignedgen strength=0.4, 1 set: set-0" in said
    assert said.count(f"Failed: {FAILURE}") == 1
    assert said.count("Not drawn yet.") == 1
    assert FAILURE not in text
    assert len(Parsed(text).of("button", "cell")) == 28


def test_a_whole_run_says_so(tmp_path):
    whole = finished(tmp_path / "run", (*arms(["plain", "naive"]),))
    rows = {key: row for key, row in whole.rows.items() if key[0] == "plain"}
    rows |= {("naive", key[1]): row.model_copy(update={"arm": "naive"}) for key, row in rows.items()}
    rows["naive", "set-2"] = rows["naive", "set-2"].model_copy(update={"warned": "<b>odd</b>"})
    whole = Finished(whole.folder, whole.config, whole.sets, rows)
    said = page(whole, summarise(whole), costs(whole))
    assert "All 10 items are drawn and measured." in words(said)
    assert "<b>odd" not in said
    assert "Warnings: 1 sentence <b>odd</b> naive, 1 set: set-2" in words(said)


def shown(text: str) -> list[str]:
    return [data for tag, data in Parsed(text).said if tag == "h3" and data.startswith("set-")]


def test_the_worst_sets_come_first_and_as_many_as_asked_for(text, run, summary, monkeypatch):
    assert shown(text) == worst_first(run, summary) == [f"set-{n}" for n in range(5)]
    assert "all 5 sets, the worst first" in words(text)
    two = page(run, summary, costs(run), rows=2)
    assert shown(two) == ["set-0", "set-1"]
    assert "the 2 worst of 5 sets; all with --rows 5" in words(two)
    assert shown(page(run, summary, costs(run), rows=9)) == shown(text)
    monkeypatch.setattr("attnctrl.evals.runs.page.CELLS", 23)
    assert shown(page(run, summary, costs(run))) == ["set-0", "set-1", "set-2"]


def test_the_table_has_the_summarys_numbers(text, run, summary):
    rows = dict(re.findall(r'<tr data-m="(\d+)"(.*?)</tr>', text, re.DOTALL))
    assert len(rows) == len(summary.arms) == 6
    for number, one in enumerate(summary.arms):
        found = words("<table>" + rows[str(number)].partition(">")[2])
        for figure in one.means.values():
            assert str(figure).replace("-", "−").replace(" [", " [") in found
            assert f'data-v="{figure.mean}"' in rows[str(number)]
        for name, figure in one.differences.items():
            mark = "" if not figure.certain else "✓ " if (figure.mean > 0) == (name != "leakage") else "✗ "
            sides = f"[{signed(figure.low)}, {signed(figure.high)}]"
            assert f"{mark}{signed(figure.mean, plus=True)} {sides}" in found
        assert len(re.findall("[✓✗]", found)) == sum(figure.certain for figure in one.differences.values())
        assert ("baseline" in found) == (one.arm.name == "plain")
        assert f"{costs(run)[one.arm.name].seconds.mean:.2f} [" in found
        assert "512" in found
    assert {"✓", "✗"} <= set(words(text))
    assert {figure.certain for one in summary.arms for figure in one.differences.values()} == {True, False}
    assert words(text).count("copies the leader") == 1
    assert says("leakage") in words(text)
    assert "leakage\xa0↓" in text.replace("&nbsp;", "\xa0")
    assert signed(-0.0001) == "0.000"
    assert signed(-2.5, 1, True) == "−2.5"


def test_a_method_of_a_sweep_stands_by_its_series(text):
    order = [int(n) for n in re.findall(r'<tr data-m="(\d+)"', text)]
    names = [one.name for one in arms(*METHODS)]
    assert [names[n].partition(" ")[0] for n in order] == ["plain", *2 * ["stylealigned"], "copy", *2 * ["alignedgen"]]
    assert text.count("<tbody>") == 4


def test_the_numbers_of_the_whole_method_are_shown_without_a_difference(run):
    found = summarise(run, frechet={"stylealigned strength=0.1": Figure(123.456, 120.0, 130.0, 5)})
    assert "123.5 [120.0, 130.0]" in words(page(run, found, costs(run)))


def test_pictures_are_small_and_all_there(text, run, tmp_path):
    cells = re.findall(
        r'<button type="button" class="cell" data-m="(\d+)".*?src="data:image/webp;base64,([^"]+)"', text, re.DOTALL
    )
    first = Image.open(BytesIO(b64decode(cells[0][1]))).convert("RGB")
    assert first.size == (3 * 16 + 2 * GAP, 16)
    (wanted, *_) = run.pictures(run.config.arms[0], "set-0")
    assert np.asarray(first, float)[:, :16].mean() == pytest.approx(np.asarray(wanted, float).mean(), abs=3)
    sheet = montage([Image.new("RGB", (512, 256), colour) for colour in ("red", "lime", "blue", "white")])
    assert sheet.size == (2 * TILE + GAP, TILE + GAP)
    assert [sheet.getpixel(at) for at in ((4, 4), (150, 4), (4, 90), (150, 90))] == [
        (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (255, 255, 255, 255),
    ]  # fmt: skip
    assert sheet.getpixel((TILE, 4))[3] == 0
    assert "The reference picture" in text


def sources(text: str) -> list[bytes]:
    return [
        b64decode(own["src"].partition(",")[2]) for own in Parsed(text).of("img") if own["alt"].endswith("pictures")
    ]


def test_pictures_take_no_more_than_they_should(run, summary, text, monkeypatch):
    best = sum(map(len, sources(text)))
    monkeypatch.setattr("attnctrl.evals.runs.page.BYTES", limit := best * 0.8)
    assert sum(map(len, sources(page(run, summary, costs(run))))) < 1.05 * limit
    monkeypatch.setattr("attnctrl.evals.runs.page.BYTES", 1000)
    monkeypatch.setattr("attnctrl.evals.runs.page.PACKINGS", ((16, 80), (16, 60), (8, 60)))
    assert Image.open(BytesIO(sources(page(run, summary, costs(run)))[0])).size == (3 * 8 + 2 * GAP, 8)


def test_a_damaged_picture_is_refused(tmp_path):
    own = finished(tmp_path / "run", count=2)
    (own.folder / picture_file(own.config.arms[0], "set-1", 1)).write_bytes(b"torn")
    with pytest.raises(ControlError, match=r"set-1-1\.png is not what was drawn"):
        page(own, summarise(own), costs(own))


def test_a_run_of_one_metric_and_one_method_is_a_page(tmp_path):
    own = finished(tmp_path / "run", arms(["plain"]), count=3, metrics=("lite-style",))
    summary = summarise(own)
    assert summary.axes is None
    text = page(own, summary, costs(own))
    assert "trade-off" not in words(text)
    assert "Failed: " in text
    swept = finished(tmp_path / "swept", metrics=("lite-style",))
    assert "Over strength ↑ lite-style" in words(page(swept, summarise(swept), costs(swept)))


def test_a_run_with_nothing_drawn_is_a_page(tmp_path, run):
    empty = Finished(run.folder, run.config, run.sets, {})
    text = page(empty, summarise(empty), costs(empty))
    assert "Not finished: 30 of 30 items are missing." in words(text)
    assert not Parsed(text).of("svg")


def ticked(text: str) -> set[str | None]:
    return {own["id"] for own in Parsed(text).of("input") if own.get("type") == "checkbox" and "checked" in own}


def test_the_first_choice_of_methods_is_the_baseline_and_those_without_settings(text, run, monkeypatch):
    assert ticked(text) == {f"m{n}" for n in range(6)}
    against = summarise(run, against="alignedgen strength=0.4")
    assert ticked(page(run, against, costs(run))) == {"m0", "m3", "m5"}
    monkeypatch.setattr("attnctrl.evals.runs.page.AT_FIRST", 2)
    assert ticked(page(run, against, costs(run))) == {"m0", "m5"}


def test_the_trade_off_shows_every_method_where_it_is(summary):
    plot = tradeoff(summary)
    assert plot is not None
    assert {point.one.arm.name for point in plot.points} == {one.arm.name for one in summary.arms}
    for point in plot.points:
        across, up = (point.one.means[name] for name in summary.axes)
        assert (point.x, point.y) == (plot.x.at(across.mean), plot.y.at(up.mean))
        assert point.across == (plot.x.at(across.low), plot.x.at(across.high))
        assert point.up == (plot.y.at(up.low), plot.y.at(up.high))
    lines = {line.series: line.points for line in plot.lines}
    places = {point.one.arm.name: (point.x, point.y) for point in plot.points}
    assert list(lines) == ["stylealigned", "alignedgen"]
    assert lines["alignedgen"] == [places[f"alignedgen strength={value}"] for value in ("0.1", "0.4")]


def test_the_method_without_settings_ends_the_line_of_strengths(tmp_path):
    methods = (*arms(["plain", "stylealigned"]), *arms(["stylealigned"], ["strength=0.5,0.2"]))
    summary = summarise(finished(tmp_path / "run", methods))
    (line,) = tradeoff(summary).lines
    places = {point.one.arm.name: (point.x, point.y) for point in tradeoff(summary).points}
    wanted = ["stylealigned strength=0.2", "stylealigned strength=0.5", "stylealigned"]
    assert line.points == [places[name] for name in wanted]
    labels = {point.one.arm.name: point.label for point in tradeoff(summary).points}
    assert [labels[name] for name in wanted] == ["0.2", "0.5", "stylealigned"]
    (one, _) = sweep_plots(summary)["strength"]
    assert [x for x, _ in one.lines[0].points] == [one.x.at(value) for value in (0.2, 0.5, 1.0)]


def test_twenty_labels_keep_clear_of_each_other_and_of_the_points():
    dice = np.random.default_rng(3)
    names = [f"{kind}:key_scale=0.{n}" for kind in ("alignedgen", "stylealigned") for n in range(1, 10)]
    found = []
    for arm in arms(["plain", *names, "copy"]):
        x, y = (0.0, 1.0) if arm.copies else 0.8 + 0.06 * dice.standard_normal(2)
        figures = (Figure(at, at - 0.04, at + 0.04, 9) for at in (y, x))
        found.append(ArmSummary(arm, dict(zip(AXES, figures, strict=False)), {}, 0, 0, []))
    plot = tradeoff(Summary("plain", AXES[:2], found, (AXES[1], AXES[0])))
    assert len(plot.points) == 20
    assert all(point.shown for point in plot.points)
    boxes = []
    for point in plot.points:
        half = LETTER * len(point.label) / 2
        boxes.append((point.text[0] - half, point.text[1] - LINE / 2, point.text[0] + half, point.text[1] + LINE / 2))
        assert boxes[-1][0] >= plot.frame[0]
        assert boxes[-1][2] <= plot.frame[2]
        assert not any(boxes[-1][0] < p.x < boxes[-1][2] and boxes[-1][1] < p.y < boxes[-1][3] for p in plot.points)
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_ticks_are_round():
    assert [text for _, text in axis([0.113, 0.487], 0, 100).ticks] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    assert [text for _, text in axis([-3, 11], 0, 100, 4).ticks] == ["0", "5", "10"]
    assert next(text for _, text in axis([0.5, 0.5], 0, 100).ticks) == "0.48"
