# SPDX-License-Identifier: MIT
"""What was measured: figures, comparisons in pairs, what was missing; as a table and as JSON."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class Missing(Exception):
    """Something that a measurement needs is not installed."""


@dataclass
class Figure:
    """Values of one quantity, the measurement repeated."""

    part: str
    what: str
    unit: str
    values: list[float] = field(default_factory=list)


@dataclass
class Comparison:
    """The same quantity of ours and of a peer, measured in turns: pair by pair."""

    part: str
    what: str
    unit: str
    peer_name: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours / the peer's, of each pair: a slow minute of the machine hits both."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=False)]


@dataclass
class Curve:
    """One quantity as a function of another: ``points`` are (x, value)."""

    part: str
    what: str
    unit: str
    x_name: str
    points: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Results:
    """Everything one run found, in order."""

    figures: list[Figure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def curve(self, part: str, what: str, unit: str, x_name: str) -> Curve:
        """The curve of that name, which is a new one the first time."""
        for curve in self.curves:
            if (curve.part, curve.what, curve.x_name) == (part, what, x_name):
                return curve
        self.curves.append(Curve(part, what, unit, x_name))
        return self.curves[-1]

    def figure(self, part: str, what: str, unit: str) -> Figure:
        """A new figure, to be filled."""
        self.figures.append(Figure(part, what, unit))
        return self.figures[-1]

    def comparison(self, part: str, what: str, unit: str, peer_name: str) -> Comparison:
        """A new comparison, to be filled."""
        self.comparisons.append(Comparison(part, what, unit, peer_name))
        return self.comparisons[-1]

    def json(self) -> dict[str, Any]:
        """Every value, and what they come to."""
        return {
            "comparisons": [_comparison_json(row) for row in self.comparisons if row.ours],
            "figures": [_figure_json(row) for row in self.figures if row.values],
            "curves": [vars(curve) for curve in self.curves],
            "missing": self.missing,
        }

    def table(self) -> str:
        """For people: medians, and the smallest and largest value. Noise: the peer's spread."""
        compared = [_comparison_cells(row) for row in self.comparisons if row.ours]
        figures = [_figure_cells(row) for row in self.figures if row.values]
        blocks = []
        if compared:
            head = ["what", "unit", "ours", "peer", "", "noise", "ratio", "min - max", "pairs"]
            blocks.append(_aligned([head, *compared]))
        if figures:
            blocks.append(_aligned([["what", "unit", "median", "min - max", "runs"], *figures]))
        for curve in self.curves:
            points = ((f"{x:g}", _number(value)) for x, value in curve.points)
            blocks.append(_aligned([[curve.x_name, f"{curve.what}, {curve.unit}"], *points]))
        blocks += [f"not measured: {what}" for what in self.missing]
        return "\n\n".join(blocks)


def in_pairs(
    comparison: Comparison,
    pairs: int,
    ours: Callable[[], float],
    peer: Callable[[], float] | None,
    say: Callable[[str], None],
) -> None:
    """Measure ours, the peer, ours, the peer, ... A peer that is None is not installed."""
    for _ in range(pairs):
        comparison.ours.append(ours())
        text = f"{comparison.what}, {len(comparison.ours)}: {_number(comparison.ours[-1])}"
        if peer is not None:
            comparison.peer.append(peer())
            text += f" / {_number(comparison.peer[-1])} = {comparison.ratios[-1]:.2f}"
        say(text)


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "spread": spread(values),
        "values": list(values),
    }


def spread(values: Sequence[float]) -> float:
    """How noisy: (largest - smallest) / median."""
    return (max(values) - min(values)) / (statistics.median(values) or 1.0)


def _comparison_json(row: Comparison) -> dict[str, Any]:
    found = {"part": row.part, "what": row.what, "unit": row.unit, "peer_name": row.peer_name}
    summaries = {"ours": _summary(row.ours)}
    if row.peer:
        summaries |= {"peer": _summary(row.peer), "ratio": _summary(row.ratios)}
    return found | summaries


def _figure_json(row: Figure) -> dict[str, Any]:
    return {"part": row.part, "what": row.what, "unit": row.unit} | _summary(row.values)


def _comparison_cells(row: Comparison) -> list[str]:
    cells = [f"{row.part}: {row.what}", row.unit, _number(statistics.median(row.ours))]
    if not row.peer:
        return [*cells, "-", f"{row.peer_name}: missing", "-", "-", "-", str(len(row.ours))]
    ratios = row.ratios
    return [
        *cells,
        _number(statistics.median(row.peer)),
        row.peer_name,
        f"{spread(row.peer):.0%}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} - {max(ratios):.2f}",
        str(len(ratios)),
    ]


def _figure_cells(row: Figure) -> list[str]:
    return [
        f"{row.part}: {row.what}",
        row.unit,
        _number(statistics.median(row.values)),
        f"{_number(min(row.values))} - {_number(max(row.values))}",
        str(len(row.values)),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
