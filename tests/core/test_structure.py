"""The shape of the house: imports run one way, files are small, the links show the rooms."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "attnctrl"
LEVELS = {"": 0, "embedded": 0, "processors": 1, "pipelines": 2, "evals": 3, "app": 4}
DOORS = {"__init__.py", "__main__.py"}
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    here = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            names = [*base, *(node.module or "").split(".")]
            if names[:1] == ["attnctrl"]:
                rooms.add(names[1] if len(names) > 1 and names[1] in LEVELS else "")
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way_and_files_are_small(path):
    assert len(path.read_text().splitlines()) <= (300 if room_of(path) in ("", "processors") else 400)
    if path.parent == PACKAGE and path.name in DOORS:
        return
    above = {room for room in imported_rooms(path) if LEVELS[room] > LEVELS[room_of(path)]}
    assert not above, f"{path.name} imports upwards: {above}"


def test_no_other_room_is_over_400_lines():
    others = [path for name in ("tests", "benchmarks", "examples") for path in (ROOT / name).rglob("*.py")]
    assert others
    assert not [path.name for path in others if len(path.read_text().splitlines()) > 400]


def imported_files(path: Path) -> set[Path]:
    """The files of the package that a file imports from, for types too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("attnctrl")):
            base = path.parents[node.level - 1] if node.level else ROOT
            module = base.joinpath(*(node.module or "").split(".")) if node.module else base
            for target in [module, *(module / one.name for one in node.names)]:
                found |= {one for one in (target.with_suffix(".py"), target / "__init__.py") if one in FILES}
    return found - {path}


def test_no_file_imports_itself_in_a_circle():
    left = {path: {p for p in imported_files(path) if p.name != "__init__.py"} for path in FILES}
    while free := [path for path, needs in left.items() if not needs]:
        for path in free:
            del left[path]
        left = {path: needs - set(free) for path, needs in left.items()}
    assert not left, f"in a circle, or behind one: {sorted(str(p.relative_to(PACKAGE)) for p in left)}"


@pytest.mark.parametrize("room", ["processors", "pipelines", "app"])
def test_links_show_the_rooms(room):
    assert (ROOT / room).is_symlink()
    assert os.readlink(ROOT / room) == f"attnctrl/{room}"


def test_the_public_face_is_lazy_and_complete():
    code = "import sys, attnctrl; assert 'torch' not in sys.modules; [getattr(attnctrl, n) for n in attnctrl.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
