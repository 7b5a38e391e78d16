# SPDX-License-Identifier: MIT
"""``python -m benchmarks.plots RESULTS.json FOLDER``: the curves of `benchmarks.sweep` as PNGs.

Needs matplotlib: pip install -e '.[benchmarks]'.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, DPI = 7.0, 3.6, 110  # inches, and pixels of each
LINEAR_SPAN_MAX = 50  # above that the small ones of some rates cannot be told apart

Curve = dict[str, Any]


def draw(results: Path, folder: Path) -> list[Path]:
    """One picture for each quantity on the x axis and unit; their paths."""
    curves: list[Curve] = json.loads(results.read_text())["curves"]
    pictures: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        pictures[curve["x_name"], curve["unit"]].append(curve)
    return [_draw(*key, found, folder) for key, found in pictures.items()]


def _draw(x_name: str, unit: str, curves: list[Curve], folder: Path) -> Path:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    for curve in curves:
        xs, ys = zip(*sorted(curve["points"]), strict=True)
        axes.plot(xs, ys, marker="o", label=curve["what"])
    ticks = sorted({x for curve in curves for x, _ in curve["points"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    values = [y for curve in curves for _, y in curve["points"]]
    if max(values) > LINEAR_SPAN_MAX * min(values) > 0 and unit == "/s":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x_name)
    axes.set_ylabel("requests/s" if unit == "/s" else unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = folder / f"{_slug(x_name)}-{'rate' if unit == '/s' else 'throughput'}.png"
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _slug(text: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(sys.argv[2])):
        print(drawn)
