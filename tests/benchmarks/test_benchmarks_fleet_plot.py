"""The plot and the tables of a simulated grid say what its JSON says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fleet_plot import Panel, load_of, plot, tables
from benchmarks.fleet_simulation import Settings, ledger_costs, simulate
from benchmarks.simulated_port import Latencies


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    small = Settings(capacity=2, learn=5.0, generate=5.0, silence=30.0, latencies=Latencies(5.0, 1.0))
    runs = [
        simulate(replace(small, workers=workers, staleness=bound, prompts=20 * size, prompts_per_step=size))
        for workers in (1, 2)
        for bound in (0, 2)
        for size in (2 * workers, 8 * workers)
    ]
    rough = replace(small, latencies=Latencies(5.0, 1.0, deaths_per_hour=300.0, hangs=0.5), scale=((50.0, 6),), staleness=1)
    changing = simulate(replace(rough, prompts=800, prompts_per_step=16))
    return json.loads(json.dumps({"runs": [*runs, changing], "ledger": [ledger_costs(8000, 1)]}))


def test_the_plot_is_svg_with_every_bound_and_fleet(results: dict[str, Any]) -> None:
    drawn = ElementTree.fromstring(plot(results["runs"]))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("K = 0") == texts.count("K = 2") == 2 and texts.count("workers") == 2
    lines = list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2 * 2 + 2 and sum("stroke-dasharray" in line.attrib for line in lines) == 2
    assert all(len(line.attrib["points"].split()) == 2 for line in lines)


def test_values_are_where_the_axis_says() -> None:
    linear = Panel("", ["1", "2"], "", [0, 50, 100])
    assert linear.y(50) == (linear.y(0) + linear.y(100)) / 2 and linear.y(100) < linear.y(0)
    log = Panel("", ["1", "2"], "", [0.01, 0.1, 1], log=True)
    assert log.y(0.1) == pytest.approx((log.y(0.01) + log.y(1)) / 2) and log.y(0.0) == log.y(0.01)


def test_the_tables_have_a_row_for_every_quiet_run_and_the_changing_one_apart(results: dict[str, Any]) -> None:
    text = tables(results)
    (run,) = (own for own in results["runs"] if load_of(own) == 4 and own["settings"]["workers"] == 2
              and own["settings"]["staleness"] == 2)
    shares = " | ".join(f"{run[name]:.3f}" for name in ("of_ideal_running", "of_ideal", "of_ideal_within_k"))
    assert f"| 2 | 4 | 2 | {shares} | 2 |" in text
    assert sum(line.startswith(("| 1 |", "| 2 |")) for line in text.splitlines()) == 8
    last = results["runs"][-1]
    assert last["recovery_s"]["told"]["count"] and last["recovery_s"]["silent"]["count"]
    assert f"800 prompts, K = 1, 8 workers, then 6 at 50 s; {last['deaths']} deaths:" in text
    assert "| 8,000 | 4,000 | " in text
