"""The wheel, installed elsewhere without the checkout, runs the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_wheel_installed_elsewhere_runs_the_demo(tmp_path):
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(source)], check=True)
    for line in subprocess.run(
        ["git", "diff", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if (ROOT / line).is_file():
            (source / line).write_bytes((ROOT / line).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "attnctrl/embedded/weights/tiny-flux/model_index.json" in names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.startswith(("processors/", "pipelines/", "app/", "tests/")) for name in names)
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    demo = [sys.executable, "-P", "-m", "attnctrl", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(demo, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    where = [sys.executable, "-P", "-c", "import attnctrl; print(attnctrl.__file__)"]
    home = subprocess.run(where, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert Path(home.strip()).is_relative_to(site)
    assert "sheet.png" in done.stdout
    for part in ("plain", "aligned"):
        assert len(list((tmp_path / "demo" / part).glob("0*.png"))) == 4
    with Image.open(tmp_path / "demo" / "aligned" / "sheet.png") as sheet:
        assert sheet.width > 700
