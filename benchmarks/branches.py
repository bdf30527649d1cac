"""Two ways to attend to shared keys, timed against each other: one call over joined keys, or a merge by log-sum-exp.

python benchmarks/branches.py            about a minute on one core

Rounds are interleaved; the table gives the median ratio to the stock call on the same rows, and its range.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from attnctrl.attention import Backend, attend, by_joined_keys, by_log_sum_exp
from attnctrl.branch import Branch, Rows

STOCK = Backend()
SIZES = {"tiny-flux (24 + 64 tokens)": (24, 64, 4, 32), "512 px (64 + 1024 tokens)": (64, 1024, 8, 64)}
ROWS, ROUNDS = 4, 15


def time_once(call: Callable[[], Tensor]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    for name, (text, image, heads, width) in SIZES.items():
        q, k, v = (torch.randn(ROWS, text + image, heads, width) for _ in range(3))
        key, value = (x[:1, text:].repeat(ROWS - 1, 1, 1, 1) for x in (k, v))
        bias = torch.tensor(0.5)
        plan, own = Rows.chosen(range(1, ROWS), ROWS), Branch(k, v)
        plain, biased = Branch(key, value, plan), Branch(key, value, plan, log_bias=bias)
        calls: dict[str, Callable[[], Tensor]] = {
            "stock": lambda q=q, k=k, v=v: attend(q, k, v, STOCK),
            "joined keys": lambda q=q, own=own, b=plain: by_joined_keys(q, own, b, STOCK),
            "log-sum-exp": lambda q=q, own=own, b=plain: by_log_sum_exp(q, (own, b))[0],
            "joined keys, bias": lambda q=q, own=own, b=biased: by_joined_keys(q, own, b, STOCK),
            "log-sum-exp, bias": lambda q=q, own=own, b=biased: by_log_sum_exp(q, (own, b))[0],
        }
        repeats = max(1, 200_000 // (text + image) ** 2 * 4)
        times: dict[str, list[float]] = {label: [] for label in calls}
        for _ in range(ROUNDS):
            for label, call in calls.items():
                times[label].append(sum(time_once(call) for _ in range(repeats)))
        print(f"\n{name}, batch {ROWS}, {torch.get_num_threads()} thread(s)")
        for label, seconds in times.items():
            ratios = [a / b for a, b in zip(seconds, times["stock"], strict=True)]
            print(f"  {label:20s} {statistics.median(ratios):5.2f}  ({min(ratios):.2f} - {max(ratios):.2f})")


if __name__ == "__main__":
    main()
