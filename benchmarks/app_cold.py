"""Cold start of the app: from the command to its address, and to the first set of pictures.

python benchmarks/app_cold.py --out docs/app-cold.json

Each figure is the median of several fresh processes; `import` is what Python needs for the modules alone. The first set
is the page's own example: four prompts, plain and aligned, the model's own steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from app_soak import serve
from gradio_client import Client

PROMPTS = "a mushroom, sticker\na rocket, sticker\na penguin, sticker\na butterfly, sticker"


def once() -> dict[str, float]:
    """Seconds of one cold start."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import attnctrl.app.web.app"], check=True, stderr=subprocess.DEVNULL)
    imported = time.monotonic() - begin
    begin = time.monotonic()
    server, address = serve()
    answers = time.monotonic() - begin
    client = Client(address, verbose=False)
    for style, strength in (("plain", 1.0), ("aligned-gentle", 1.0)):
        client.predict(prompts=PROMPTS, style=style, strength=strength, api_name="/generate_set")
        if style == "plain":
            first = time.monotonic() - begin
    both = time.monotonic() - begin
    server.terminate()
    server.wait()
    return {
        "import": imported,
        "command to the page": answers,
        "command to the first pictures": first,
        "the same after import": first - imported,
        "command to plain and aligned": both,
    }


def main() -> None:
    """Measure; write OUT and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = [once() for _ in range(options.starts)]
    result = {name: round(float(np.median([one[name] for one in found])), 1) for name in found[0]}
    options.out.write_text(json.dumps({"starts": options.starts, "seconds": result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
