"""Batch evaluations: a run is the same however it is shared out, killed or broken."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import time

import pytest
from pydantic import BaseModel
from run_fixtures import FEW, ONE, WRITES
from runs import (
    SETS,
    begin,
    counted,
    ended,
    forked,
    result,
    stray,
)  # fmt: skip

from attnctrl import ControlError
from attnctrl.evals import ledger
from attnctrl.evals.ledger import Ledger, entries
from attnctrl.evals.runs.finished import read_run


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_finds_the_same(drawer, whole, tmp_path, count):
    with counted() as drawn:
        for rank in range(count):
            begin(tmp_path, drawer, rank=rank, of=count).run()
    assert len(drawn) == len(SETS) * 2, "nothing is drawn twice"
    assert result(tmp_path) == whole[1]
    parts = [
        {entry["rows"][0]["set"] for entry in entries(tmp_path / f"results-{rank}.jsonl")} for rank in range(count)
    ]
    assert all(parts)
    assert not any(a & b for a, b in itertools.combinations(parts, 2)), "shared out by set"


def test_another_number_of_processes_goes_on(drawer, whole, tmp_path):
    begin(tmp_path, drawer, rank=1, of=3).run()
    begin(tmp_path, drawer, rank=0, of=2).run()
    with counted() as drawn:
        begin(tmp_path, drawer).run()
    assert 0 < len(drawn) < len(SETS) * 2
    assert result(tmp_path) == whole[1]
    with counted() as drawn:
        rows = begin(tmp_path, drawer).run()
    assert not drawn
    assert len(rows) == len(SETS) * 2


def test_every_process_has_everything_in_the_end(drawer, tmp_path):
    rows = begin(tmp_path, drawer, FEW, of=2, wait=begin(tmp_path, drawer, FEW, rank=1, of=2).run).run()
    assert set(rows) == {(arm, one.id) for arm in ("plain", "aligned") for one in FEW}


def test_killed_at_random_moments_it_goes_on(drawer, whole, tmp_path):
    moments, killed = random.Random(3), 0
    while killed < 12:
        child = forked(lambda: begin(tmp_path, drawer).run())
        time.sleep(moments.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        if ended(child) != -signal.SIGKILL:
            break
        killed += 1
    assert killed > 1
    begin(tmp_path, drawer).run()
    assert result(tmp_path) == whole[1]
    assert not stray(tmp_path)


def test_killed_at_every_write_it_goes_on(drawer, single, tmp_path, monkeypatch):
    synced, drafts = os.fsync, 0

    def killed(folder, k):
        """The exit code of a run that is killed when it is about to sync its k-th file or line."""
        calls = itertools.count(1)

        def dying(file):
            if next(calls) == k:
                os.kill(os.getpid(), signal.SIGKILL)
            synced(file)

        with monkeypatch.context() as patch:
            patch.setattr(ledger.os, "fsync", dying)
            return ended(forked(lambda: begin(folder, drawer, ONE).run()))

    for k in range(1, WRITES + 1):
        assert killed(tmp_path / str(k), k) == -signal.SIGKILL
        drafts += len([path for path in (tmp_path / str(k)).rglob(".*") if not path.name.startswith(".lock")])
        begin(tmp_path / str(k), drawer, ONE).run()
        assert result(tmp_path / str(k)) == single[1]
        assert not stray(tmp_path / str(k))
    assert drafts == WRITES - 2, "a line has none"
    codes = [killed(tmp_path / "one", k) for k in (1, 1, 2, 3, 2, 4, 3, 4, 99)]
    assert codes == [-signal.SIGKILL] * 8 + [0]
    assert result(tmp_path / "one") == single[1]


DAMAGE = {
    "a bit": lambda body: body[:-40] + bytes([body[-40] ^ 1]) + body[-39:],
    "a bit of the recipe": lambda body: body.replace(b'"seed"', b'"seeD"'),
    "a bit at the end": lambda body: body[:-1] + bytes([body[-1] ^ 128]),
    "torn": lambda body: body[:999],
    "empty": lambda body: b"",
    "longer": lambda body: body + b"\0",
    "gone": lambda body: None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_picture_is_told_and_drawn_again(drawer, small, copied, damage):
    name = f"pictures/aligned/{FEW[1].id}-1.png"
    body, before = damage((copied / name).read_bytes()), {n: (copied / n).stat().st_mtime_ns for n in small[1][0]}
    assert body != (copied / name).read_bytes()
    (copied / name).unlink() if body is None else (copied / name).write_bytes(body)
    run = read_run(copied)
    plain, aligned = run.config.arms
    assert len(run.pictures(plain, FEW[1].id)) == 2
    with pytest.raises(ControlError, match=r"ink-2-1\.png is not what was drawn; give the command that began the run"):
        run.pictures(aligned, FEW[1].id)
    again = begin(copied, drawer, FEW)
    with counted() as drawn:
        again.run()
    assert drawn == [FEW[1].prompts]
    assert again.redrawn == [name]
    assert result(copied) == small[1]
    after = {n: (copied / n).stat().st_mtime_ns for n in small[1][0]}
    assert {n for n in after if after[n] != before[n]} == {name, name.replace("-1.png", "-0.png")}


class Nothing(BaseModel):
    run: int = 1


def test_a_torn_last_line_is_done_again(drawer, small, copied, tmp_path):
    path, plan = tmp_path / "lines" / "results-0.jsonl", Nothing()
    begun = Ledger(path.parent, plan)
    for name in "abc":
        begun.append(name, [{"value": name}])
    body = path.read_bytes()
    last = body[:-1].rfind(b"\n") + 1
    for cut in range(last, len(body)):
        path.write_bytes(body[:cut])
        again = Ledger(path.parent, plan)
        assert list(again.done) == ["a", "b"]
        again.append("c", [{"value": "c"}])
        assert path.read_bytes() == body
    lines = copied / "results-0.jsonl"
    body = lines.read_bytes()
    last = body[:-1].rfind(b"\n") + 1
    for cut in range(last, len(body), 17):
        lines.write_bytes(body[:cut])
        assert len(begin(copied, drawer, FEW).rows()) == len(read_run(copied).rows) == 3
    with counted() as drawn:
        begin(copied, drawer, FEW).run()
    assert drawn == [FEW[1].prompts]
    assert result(copied) == small[1]


@pytest.mark.parametrize("line", [b"{broken", b"", b"\xff\xfe", b'{"id": "plain/ink-2", "rows": ['])
def test_a_damaged_line_is_named(drawer, copied, line):
    path = copied / "results-0.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    for read in (read_run, lambda folder: begin(folder, drawer, FEW)):
        with pytest.raises(ControlError, match=r"results-0\.jsonl, line 3 is damaged; delete that line"):
            read(copied)


@pytest.mark.parametrize("line", [b"7", b"{}", b'{"iD": "plain/ink-1", "rows": []}', b'{"id": "plain/ink-1"}'])
def test_a_damaged_line_that_is_json_is_named_too(drawer, copied, line):
    path = copied / "results-0.jsonl"
    path.write_bytes(b"\n".join([line, *path.read_bytes().split(b"\n")[1:]]))
    for read in (read_run, lambda folder: begin(folder, drawer, FEW)):
        with pytest.raises(ControlError, match=r"results-0\.jsonl, line 1 is damaged"):
            read(copied)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on(drawer, single, tmp_path, monkeypatch, code):
    synced = os.fsync
    for k in range(WRITES) if code == errno.ENOSPC else (1, WRITES - 1):
        left = iter(range(k))

        def full(file, left=left):
            if next(left, None) is None:
                raise OSError(code, os.strerror(code))
            synced(file)

        folder = tmp_path / str(k)
        with monkeypatch.context() as patch:
            patch.setattr(ledger.os, "fsync", full)
            with pytest.raises(ControlError, match=f"cannot write to .*{k}: {os.strerror(code)}"):
                begin(folder, drawer, ONE).run()
        assert not [path for path in folder.rglob(".*") if not path.name.startswith(".lock")], "no drafts"
        begin(folder, drawer, ONE).run()
        assert result(folder) == single[1]


def test_a_line_that_hardly_fits_is_written_again(drawer, small, tmp_path, monkeypatch):
    append, said = Ledger.append, OSError(errno.ENOSPC, "No space left on device")

    def half(self, identity, rows):
        with (self.folder / "results-0.jsonl").open("ab") as file:
            file.write(b'{"id": "plain/in')
        raise said

    monkeypatch.setattr(Ledger, "append", half)
    for _ in range(2):
        with pytest.raises(ControlError, match="No space left on device; what is done is kept"):
            begin(tmp_path, drawer, FEW).run()
    monkeypatch.setattr(Ledger, "append", append)
    begin(tmp_path, drawer, FEW).run()
    assert result(tmp_path) == small[1]


def test_lines_are_counted_as_they_come(tmp_path):
    """Of all processes, a torn one not, and one that takes a torn one's place once."""
    book, other = Ledger(tmp_path / "run", Nothing()), Ledger(tmp_path / "run", Nothing(), rank=1)
    book.append("a", [{}])
    assert book.lines() == 1
    other.append("b", [{}])
    book.append("c", [{}])
    assert (book.lines(), book.lines()) == (3, 3)
    file = tmp_path / "run" / "results-1.jsonl"
    file.write_bytes(file.read_bytes() + b'{"id": "torn", "rows": [' + b" " * 500)
    assert book.lines() == 3
    other.append("d", [{}])
    assert book.lines() == 4
