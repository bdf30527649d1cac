"""`attnctrl eval`: real processes, a killed command, a full disk, and one sentence for every bad input."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from runs import ended, forked, noise, pictures, plain_report, result, stray
from test_command_line import call, text

from attnctrl.app import cli
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.sets import read_sets, spread

STYLE = ["--first", "3", "--steps", "2", "--methods", "plain,alignedgen", "--metrics", "lite-style"]
LINES = (
    '{"id": "one", "prompts": ["a fox, ink", "a key, ink"]}\n{"id": "two", "prompts": ["a star, ink", "a car, ink"]}\n'
)
CHEAP = ["--steps", "1", "--size", "32", "--methods", "plain,naive", "--metrics", "contrast", "--device", "cpu"]
REPORT = ("items.csv", "summary.json")


@pytest.fixture(autouse=True)
def _no_page(monkeypatch):
    """Reports without a page, in this process and its copies."""
    monkeypatch.setattr("attnctrl.evals.runs.report.write_report", plain_report)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one undisturbed process finds of STYLE, and its folder."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnctrl.evals.runs.report.write_report", plain_report)
        assert call(patch, "eval", "style", "--out", str(folder), *STYLE) == 0
    return folder, result(folder)


@pytest.fixture
def lines(tmp_path):
    return text(tmp_path / "lines.jsonl", LINES)


def written(folder):
    return [(folder / name).read_text() for name in REPORT]


# processes, killed and resumed


def test_torchrun_finds_what_one_process_finds(alone, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "attnctrl", "eval", "style"]
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "both"), *STYLE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1, "one of them speaks"
    assert done.stdout.count("items.csv") == 1, "and reports"
    assert result(tmp_path / "both") == alone[1]
    assert written(tmp_path / "both") == written(alone[0])
    assert [len((tmp_path / "both" / f"results-{i}.jsonl").read_bytes().splitlines()) for i in (0, 1)] == [4, 2]
    assert not [name for name in stray(tmp_path / "both") if name != "frechet.npz"]


def test_a_killed_command_goes_on(alone, monkeypatch, tmp_path, capsys):
    folder, moments = tmp_path / "run", random.Random(5)
    words = ["eval", "style", "--out", str(folder), *STYLE]
    for kill in range(5):
        child = forked(lambda: run_as(words))
        begun = time.monotonic()
        while kill == 0 and not (folder / "results-0.jsonl").exists() and time.monotonic() < begun + 200:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.2) if kill else 0.1)
        os.kill(child, signal.SIGKILL)
        ended(child)
        assert 0 < len(read_run(folder).rows) < 6 or kill
    assert call(monkeypatch, *words) == 0
    assert "of 6 are done already" in capsys.readouterr().out
    assert result(folder) == alone[1]
    assert written(folder) == written(alone[0])
    assert not stray(folder)


def run_as(words):
    sys.argv = ["attnctrl", *words]
    cli.main()


def test_a_run_that_is_done_draws_nothing(alone, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in alone[0].rglob("*.png")}
    assert call(monkeypatch, "eval", "style", "--out", str(alone[0]), *STYLE) == 0
    assert "6 of 6 are done already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in alone[0].rglob("*.png")}


# a full disk


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """The words of a run of many sets, and what it finds with room enough."""
    folder = tmp_path_factory.mktemp("roomy")
    rows = [json.loads(line) for line in LINES.splitlines()]
    many = [json.dumps({**rows[i % 2], "id": f"set-{i}"}) for i in range(6)]
    words = ["eval", "style", "--sets", text(folder / "many.jsonl", "\n".join(many)), *CHEAP, "--out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnctrl.evals.runs.report.write_report", plain_report)
        assert call(patch, *words, str(folder / "run")) == 0
    return words, result(folder / "run")


@pytest.mark.parametrize(("limit", "least"), [(200, 0), (2000, 0), (4400, 8)], ids=["config", "pictures", "results"])
def test_a_full_disk_is_one_sentence(roomy, monkeypatch, tmp_path, limit, least):
    folder = tmp_path / "run"
    words = [*roomy[0], str(folder)]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_as(words)

    assert ended(forked(limited, tmp_path / "said")) == 2
    said = (tmp_path / "said").read_text()
    assert f"attnctrl: cannot write to {folder}: File too large" in said
    assert len(said.strip().splitlines()) == 1
    assert least <= len(pictures(folder)) < 24
    assert not [path for path in folder.rglob(".*") if not path.name.startswith(".lock")], "no drafts"
    texts = [path.read_text() for path in folder.glob("results-*")]
    assert not any('"failed": "' in one for one in texts), "not the items' fault"
    assert call(monkeypatch, *words) == 0
    assert result(folder) == roomy[1]
    assert not stray(folder)


# the commands


def test_eval_style_on_a_file_of_sets(lines, monkeypatch, tmp_path, capsys):
    (led,) = noise(40)
    led.save(tmp_path / "wall.png")
    with open(lines, "a") as file:
        file.write('{"id": "led", "prompts": ["a bell"], "reference": "wall.png", "caption": "a wall"}\n')
    words = ["eval", "style", "--out", str(tmp_path / "run"), "--prompts", lines, "--steps", "1", "--size", "48x32"]
    words += ["--methods", "plain", "--methods", "aligned,copy", "--sweep", "strength=0.1,1", "--baseline", "copy"]
    assert call(monkeypatch, *words, "--metrics", "contrast, saturation,contrast", "--seed", "7") == 0
    out = capsys.readouterr().out
    assert "3 sets, 4 methods, 1 process(es)" in out
    assert "items.csv" in out.replace("\n", "")
    (tmp_path / "wall.png").unlink()
    run = read_run(tmp_path / "run")
    assert [arm.name for arm in run.config.arms] == ["plain", "aligned strength=0.1", "aligned strength=1", "copy"]
    assert (run.config.baseline, run.config.metrics, run.config.seed) == ("copy", ("contrast", "saturation"), 7)
    assert len(pictures(tmp_path / "run")) == 4 * 5
    assert not run.failed
    assert run.pictures(run.config.arms[1], "led")[0].size == (48, 32)
    assert run.pictures(run.config.arms[3], "led")[0].tobytes() == led.resize((48, 32)).tobytes()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["methods"]["plain"]["differences"]) == ["contrast", "saturation"]
    assert summary["methods"]["copy"]["differences"] == {}
    assert (tmp_path / "run" / "items.csv").read_text().count("\n") == 1 + 4 * 3


def test_shipped_sets(alone):
    run = read_run(alone[0])
    assert tuple(run.sets.values()) == spread(read_sets("embedded"), 3)
    assert run.config.sets == "embedded"
    assert all(len(run.pictures(arm, one)) == len(run.sets[one].prompts) for arm in run.config.arms for one in run.sets)


def test_a_picture_of_a_run_replays(alone, monkeypatch, tmp_path, capsys):
    picture = next(alone[0].glob("pictures/alignedgen/*-0.png"))
    assert call(monkeypatch, "run", str(picture), "--out", str(tmp_path / "again")) == 0
    assert "4 of 4 pictures are identical" in capsys.readouterr().out
    with Image.open(picture) as a, Image.open(tmp_path / "again" / "00.png") as b:
        assert a.tobytes() == b.tobytes()


def test_a_failing_item_is_told_and_the_rest_reported(lines, monkeypatch, tmp_path, capsys):
    (tmp_path / "own_scores.py").write_text(
        "import os\n"
        "def dark(images, prompts):\n"
        "    if prompts[0].startswith('a star') and not os.environ.get('MENDED'):\n"
        "        raise ValueError('no stars')\n"
        "    return [0.5] * len(images)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["eval", "style", "--out", str(tmp_path / "run"), "--sets", lines, *CHEAP]
    words[words.index("contrast")] = "own_scores:dark"
    assert call(monkeypatch, *words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 failed, the first: plain, two:" in out
    assert "no stars; the same command tries them again" in out
    methods = json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]
    assert [(one["failed"], one["means"]["own_scores:dark"]["sets"]) for one in methods.values()] == [(1, 1)] * 2
    monkeypatch.setenv("MENDED", "1")
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "2 of 4 are done already" in out
    assert "failed" not in out
    methods = json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]
    assert [(one["failed"], one["means"]["own_scores:dark"]["sets"]) for one in methods.values()] == [(0, 2)] * 2


def test_eval_report_against_another(lines, monkeypatch, tmp_path, capsys):
    asked = []
    assert call(monkeypatch, "eval", "style", "--out", str(tmp_path / "run"), "--sets", lines, *CHEAP) == 0
    monkeypatch.setattr("attnctrl.evals.runs.report.write_report", lambda *words: asked.append(words) or [])
    assert call(monkeypatch, "eval", "report", str(tmp_path / "run"), "--against", "naive", "--rows", "3") == 0
    assert asked == [(tmp_path / "run", "naive", 3)]


def test_eval_heads(monkeypatch, tmp_path, capsys):
    folder, prompts = tmp_path / "run", text(tmp_path / "prompts.txt", "a fox\n# not this\na key\n\na bell\n")
    words = [
        "eval",
        "heads",
        "L1H0,L2H3",
        "L0H1",
        "--prompts",
        prompts,
        "--objective",
        "contrast",
        "--out",
        str(folder),
    ]
    words += [
        "--repeats",
        "2",
        "--random-sets",
        "2",
        "--steps",
        "1",
        "--size",
        "32",
        "--strength",
        "2",
    ]
    assert call(monkeypatch, *words) == 0
    assert "6 sets, 7 methods" in capsys.readouterr().out
    run = read_run(folder)
    first, second = "L1H0,L2H3", "L0H1"
    names = [first, f"{first} random 1", f"{first} random 2", second, f"{second} random 1", f"{second} random 2"]
    assert [arm.name for arm in run.config.arms] == ["plain", *names]
    assert [arm.series for arm in run.config.arms] == [
        "plain", first, f"{first} random", f"{first} random", second, f"{second} random", f"{second} random",
    ]  # fmt: skip
    heads = [arm.control[0].where.heads for arm in run.config.arms[1:]]
    assert [len(one.split(",")) for one in heads] == [2, 2, 2, 1, 1, 1]
    assert (heads[0].replace(" ", ""), heads[3]) == (first, second)
    assert {arm.control[0].strength for arm in run.config.arms[1:]} == {2.0}
    assert [one.prompts for one in run.sets.values()] == [("a fox",), ("a key",), ("a bell",)] * 2
    assert len({row.seed for row in run.rows.values()}) == 6, "every repeat has other seeds"
    assert run.missing == len(run.failed) == 0
    assert len(pictures(folder)) == 7 * 6
    guided, plain = (pictures(folder / "pictures" / arm.slug) for arm in (run.config.arms[1], run.config.arms[0]))
    assert all(guided[name] != plain[name] for name in guided)
    assert heads[1] != heads[2], "drawn by chance"
    assert call(monkeypatch, *words) == 0, "and the same again, or the folder would be another run's"
    assert "42 of 42 are done already" in capsys.readouterr().out


def test_eval_metrics(monkeypatch, capsys):
    from attnctrl.evals.metrics.kinds import FRECHET, KINDS

    assert call(monkeypatch, "eval", "metrics") == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{out}" for name in (*KINDS, FRECHET))


def test_eval_diff(lines, monkeypatch, tmp_path, capsys):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        words = ["eval", "style", "--out", str(tmp_path / name), "--sets", lines, *CHEAP, "--seed", seed]
        assert call(monkeypatch, *words) == 0
    capsys.readouterr()
    assert call(monkeypatch, "eval", "diff", str(tmp_path / "a"), str(tmp_path / "b")) == 0
    out = capsys.readouterr().out
    assert "4 of 4 items have byte-equal pictures." in out
    assert "differ in" not in out
    assert "| naive | contrast |" in out
    assert out.count("0.000 [0.000, 0.000] | 2 |") == 2
    assert call(monkeypatch, "eval", "diff", str(tmp_path / "a"), str(tmp_path / "c")) == 0
    out = capsys.readouterr().out
    assert "0 of 4 items have byte-equal pictures." in out
    assert "The runs differ in seed." in out


def one(folder, line):
    return ["--sets", text(folder / "bad.jsonl", LINES + line)]


def used(folder):
    (folder / "mine").mkdir()
    text(folder / "mine" / "thesis.txt")
    return ["--out", str(folder / "mine")]


PROMPTS = ["--objective", "contrast", "--prompts"]
BAD = {
    "no sets": (lambda t: ["style", "--sets", "embeded"], "there are no sets 'embeded'"),
    "no such file": (lambda t: ["style", "--sets", str(t / "no.jsonl")], "cannot read the sets"),
    "no JSON": (lambda t: ["style", *one(t, "{oops")], "bad.jsonl, line 3 is no JSON"),
    "wrong key": (lambda t: ["style", *one(t, '{"id": "a", "prompt": ["b"]}')], "bad.jsonl, line 3: prompt"),
    "a known id": (lambda t: ["style", *one(t, '{"id": "one", "prompts": ["b", "c"]}')], "line 3: the id 'one' is line 1's already"),
    "no such picture": (lambda t: ["style", *one(t, '{"id": "a", "prompts": ["b"], "reference": "no.png"}')], "line 3: there is no picture at"),
    "one prompt": (lambda t: ["style", *one(t, '{"id": "a", "prompts": ["b"]}'), "--methods", "plain,aligned"], "the set 'a' has one prompt and no reference"),
    "too many first": (lambda t: ["style", "--first", "101"], "there are 100 sets, and 101 were asked for"),
    "none first": (lambda t: ["style", "--first", "0"], "choose 1 to 100"),
    "unknown method": (lambda t: ["style", "--methods", "alinged"], "did you mean aligned?"),
    "unknown setting": (lambda t: ["style", "--methods", "aligned:strngth=1"], "aligned has no setting 'strngth'"),
    "bad setting": (lambda t: ["style", "--methods", "aligned:strength=-1"], "strength: Input should be greater"),
    "no setting": (lambda t: ["style", "--methods", "plain", "--sweep", "strength=1"], "none of the methods has a setting 'strength'"),
    "freecus without a picture": (lambda t: ["style", "--methods", "freecus"], "freecus keeps the subject of a picture"),
    "no such blocks": (lambda t: ["style", "--methods", "aligned:blocks=99"], "aligned blocks=99: "),
    "unknown metric": (lambda t: ["style", "--metrics", "lite-stile"], "did you mean lite-style?"),
    "no metric": (lambda t: ["style", "--metrics", " , "], "metrics"),
    "an objective's argument": (lambda t: ["style", "--metrics", "color"], "color needs COLOR"),
    "no whole token": (lambda t: ["style", "--size", "60"], "is no multiple of"),
    "bad size": (lambda t: ["style", "--size", "big"], "WIDTHxHEIGHT"),
    "no steps": (lambda t: ["style", "--steps", "0"], "num_inference_steps"),
    "bad seed": (lambda t: ["style", "--seed", "-1"], "seed"),
    "one at once": (lambda t: ["style", "--batch-size", "1"], "batch_size"),
    "no threads": (lambda t: ["style", "--threads", "0"], "threads"),
    "unknown model": (lambda t: ["style", "--model", "tiny-sd4"], "there is no model 'tiny-sd4'"),
    "bad dtype": (lambda t: ["style", "--dtype", "int3"], "choose float32"),
    "used folder": (lambda t: ["style", *used(t)], "holds other files"),
    "a file as folder": (lambda t: ["style", "--out", text(t / "file")], "is a file; name a new folder"),
    "unknown baseline": (lambda t: ["style", "--first", "1", *CHEAP, "--baseline", "aligned"], "no method 'aligned'"),
    "an option of FLUX": (lambda t: ["style", "--first", "1", *CHEAP, "--true-cfg-scale", "2"], "no true_cfg_scale"),
    "no prompts": (lambda t: ["heads", "L0H1", *PROMPTS, str(t / "no.txt")], "cannot read the prompts"),
    "no heads": (lambda t: ["heads", "L0H9", *PROMPTS, text(t / "p.txt")], "block 0 has heads 0-"),
    "heads twice": (lambda t: ["heads", "L0H1", "L0H1", *PROMPTS, text(t / "p.txt")], "the heads L0H1 are given twice"),
    "unknown preset": (lambda t: ["heads", "flux-gren", *PROMPTS, text(t / "p.txt")], "there is no preset"),
    "unknown objective": (lambda t: ["heads", "L0H1", "--objective", "contrst", "--prompts", text(t / "p.txt")], "contrast"),
    "no repeats": (lambda t: ["heads", "L0H1", *PROMPTS, text(t / "p.txt"), "--repeats", "0"], "repeats"),
    "no run": (lambda t: ["report", str(t / "none")], "holds no run"),
    "no run before": (lambda t: ["diff", str(t / "none"), str(t / "none")], "holds no run"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    BAD.values(),
    ids=BAD.keys(),
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, monkeypatch, tmp_path, capsys):
    given = words(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    out = ["--out", str(tmp_path / "out" / "run")] if given[0] in ("style", "heads") and "--out" not in given else []
    assert call(monkeypatch, "eval", *given, *out) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, "nothing half-written"
