# SPDX-License-Identifier: MIT
"""docs/monitoring.md and the dashboard know the metrics as they are, and no others."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from swiftnbd.export.block_map import Kind
from swiftnbd.export.status import ExportState
from swiftnbd.server.history import SAMPLES_MAX
from swiftnbd.server.http_metrics import SPECS, Spec
from tests.support.pages import ROOT

PAGE = (ROOT / "docs/monitoring.md").read_text()
DASHBOARD = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
ALWAYS = {"instance", "job"}  # the labels that Prometheus itself adds


def kind_of(spec: Spec) -> str:
    return spec.family.__name__.removesuffix("MetricFamily").lower()


def expressions(part: Any) -> Iterator[str]:
    """Every PromQL expression of a dashboard, and the queries of its variables."""
    if isinstance(part, dict):
        yield from (part[key] for key in ("expr", "query") if isinstance(part.get(key), str))
    for inner in (
        part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    ):
        yield from expressions(inner)


def samples() -> dict[str, set[str]]:
    """The names that can be asked for, each with its labels."""
    found = {}
    for spec in SPECS:
        labels = {label for label in spec.labels.split(",") if label} | ALWAYS
        if kind_of(spec) == "histogram":
            found[f"swiftnbd_{spec.name}_bucket"] = labels | {"le"}
            found[f"swiftnbd_{spec.name}_sum"] = found[f"swiftnbd_{spec.name}_count"] = labels
        else:
            found[f"swiftnbd_{spec.name}"] = labels
    return found


def test_table_is_what_there_is() -> None:
    rows = re.findall(r"^\| `swiftnbd_(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (
            spec.name,
            kind_of(spec),
            ", ".join(f"`{label}`" for label in spec.labels.split(",") if label),
            spec.text,
        )
        for spec in SPECS
    ]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_names_are_as_prometheus_wants_them(spec: Spec) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", spec.name)
    assert spec.name.endswith("_total") is (kind_of(spec) == "counter")
    if kind_of(spec) == "histogram":
        assert spec.name.endswith("_seconds")
    assert spec.text.endswith(".")


def test_dashboard_and_alerts_ask_for_what_there_is() -> None:
    known = samples()
    asked = [*expressions(DASHBOARD), *re.findall(r"^  expr: (.*)$", PAGE, re.MULTILINE)]
    named = [name for text in asked for name in re.findall(r"\bswiftnbd_\w+", text)]
    assert len(named) >= 30
    assert set(named) <= known.keys(), set(named) - known.keys()
    for text in asked:
        labels = set().union(*(known[name] for name in re.findall(r"\bswiftnbd_\w+", text)))
        used = {
            label for group in re.findall(r"\bby \(([^)]*)\)", text) for label in group.split(", ")
        }
        used |= set(re.findall(r"[{,]\s*(\w+)\s*=~?", text))
        assert used <= labels, (text, used - labels)


def test_dashboard_shows_most_of_it() -> None:
    shown = " ".join(expressions(DASHBOARD))
    missing = [spec.name for spec in SPECS if f"swiftnbd_{spec.name}" not in shown]
    assert missing == [
        "build_info", "connections", "export_connections", "cache_limit_bytes", "dirty_objects",
        "uploading_objects", "swift_requests_under_way",
    ]  # fmt: skip


def test_states_and_kinds_are_explained() -> None:
    for state in ExportState:
        assert f"`{state}`" in PAGE
    for kind in Kind:
        assert f"\n| {'not known' if kind is Kind.UNKNOWN else kind} | " in PAGE
    assert SAMPLES_MAX == 240
    assert "last four minutes" in PAGE
