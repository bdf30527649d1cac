"""A soak of the app: many mixed jobs from several clients at once, with the server's memory beside.

python benchmarks/app_soak.py --jobs 200 --clients 4 --out docs/app-soak.json

The server runs in a process of its own, as `attnctrl app` does. Jobs: style sets, by picture too, heads, attention, a
small evaluation, and bad input that must be refused with a sentence. Memory is the server's resident size after a job.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

SUBJECTS = ("fox", "key", "house", "rocket", "penguin", "guitar", "star", "fish")
STYLES = ("comic", "sticker", "watercolor", "neon sign")
MODELS = ("tiny-sd3", "tiny-flux")


def job(rng: random.Random, picture: str) -> tuple[str, dict[str, Any], bool]:
    """An endpoint, its arguments, and whether it is to be refused."""
    style, model = rng.choice(STYLES), rng.choice(MODELS)
    prompts = "\n".join(f"a {one}, {style}" for one in rng.sample(SUBJECTS, 3))
    common = {"model": model, "seed": rng.randrange(1000), "num_inference_steps": rng.choice((4, 6, 8))}
    kind = rng.choice(("set", "set", "picture", "heads", "attention", "evaluate", "bad"))
    if kind == "set":
        return (
            "/generate_set",
            {"prompts": prompts, "style": rng.choice(("aligned", "naive", "plain")), **common},
            False,
        )
    if kind == "picture":
        return (
            "/generate_set",
            {"prompts": prompts, "reference": handle_file(picture), "caption": "a fox", **common},
            False,
        )
    if kind == "heads":
        return (
            "/guide_heads",
            {"prompt": f"a fox, {style}", "heads": f"L{rng.randrange(6)}H{rng.randrange(4)}", **common},
            False,
        )
    if kind == "attention":
        return "/attention_map", {"prompt": f"a red fox, {style}", "word": "fox", **common}, False
    if kind == "evaluate":
        return "/evaluate_methods", {"methods": "plain,alignedgen", "count": 2, **common}, False
    return "/guide_heads", {"prompt": "a fox", "heads": "L99H0", **common}, True


def memory_mib(pid: int) -> float:
    """Resident size of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def serve() -> tuple[subprocess.Popen[bytes], str]:
    """The app on a free port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "attnctrl", "app", "--port", str(port), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(240):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return server, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the app did not come up")


def main() -> None:
    """Run the soak; write OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    picture = str(Path(tempfile.mkdtemp()) / "reference.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture)
    jobs, lock = [job(rng, picture) for _ in range(options.jobs)], threading.Lock()
    server, address = serve()
    memory, seconds, counts, failures = [], [], Counter[str](), []

    def client() -> None:
        mine = Client(address, verbose=False)
        while True:
            with lock:
                if not jobs:
                    return
                name, arguments, refused = jobs.pop(0)
            begin, fault = time.monotonic(), None
            try:
                mine.predict(api_name=name, **arguments)
            except AppError as error:
                fault = str(error)
            with lock:
                seconds.append(time.monotonic() - begin)
                memory.append(memory_mib(server.pid))
                counts[f"{name}, refused as it must be" if refused and fault else name] += 1
                if bool(fault) != refused:
                    failures.append(f"{name} {arguments}: {fault or 'was not refused'}")
                if len(memory) % 10 == 0:
                    print(f"{len(memory)} jobs, {memory[-1]:.0f} MiB, {len(failures)} failures", flush=True)

    begin = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    server.terminate()
    quarter = max(1, len(memory) // 4)
    parts = [round(float(np.median(memory[i : i + quarter])), 1) for i in range(0, quarter * 4, quarter)]
    result = {
        "jobs": len(memory),
        "clients": options.clients,
        "failures": failures,
        "by kind": dict(sorted(counts.items())),
        "minutes": round(took / 60, 1),
        "median seconds a job, with the wait in line": round(float(np.median(seconds)), 1),
        "median MiB by quarter": parts,
        "MiB after the last job": round(memory[-1], 1),
        "MiB at most": round(max(memory), 1),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
