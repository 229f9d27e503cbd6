"""The plot and the tables that docs/fleet.md shows of a result of `benchmarks.fleet_simulation --grid`.

    python -m benchmarks.fleet_plot benchmarks/results/fleet_simulation.json [--svg FILE] [--markdown FILE]

--markdown writes the tables into a page, between its two lines `<!-- fleet_simulation -->`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 50, 40
COLOURS = ("#999999", "#d17c00", "#2a7fb8", "#1a4a72", "#7a4fa0")
MARK = "<!-- fleet_simulation -->"
Run = Mapping[str, Any]


def load_of(run: Run) -> int:
    """Prompts of a step for every place of the fleet."""
    own = run["settings"]
    return own["prompts_per_step"] // (own["workers"] * own["capacity"])


def steady(runs: Sequence[Run]) -> list[Run]:
    """The runs in which nobody died and nothing changed."""
    return [run for run in runs if not run["deaths"] and not run["settings"]["scale"]]


# the plot


class Panel:
    """One diagram: x in named places, y in a range, linear or by its logarithm."""

    def __init__(self, title: str, names: Sequence[str], x_label: str, ticks: Sequence[float], log: bool = False) -> None:
        """`ticks`: of the y axis, in increasing order; the first and the last are its ends."""
        self._names, self._ticks, self._log = list(names), list(ticks), log
        middle = (LEFT + WIDTH - RIGHT) / 2
        self._parts = [_text(12, 20, title, "start", 12), _text(middle, HEIGHT - 6, x_label, "middle")]
        self._parts += [_text(self.x(index), HEIGHT - BOTTOM + 16, name, "middle") for index, name in enumerate(self._names)]
        for tick in ticks:
            self._parts.append(f'<path d="M{LEFT} {self.y(tick):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
            self._parts.append(_text(LEFT - 6, self.y(tick) + 4, f"{tick:g} %", "end"))
        self._keys = 12.0

    def x(self, place: float) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(self._names)

    def y(self, value: float) -> float:
        scale = math.log10 if self._log else float
        low, high = scale(self._ticks[0]), scale(self._ticks[-1])
        share = (scale(max(value, self._ticks[0])) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def line(self, name: str, values: Sequence[float], colour: str, dashed: bool = False) -> None:
        points = " ".join(f"{self.x(index):.1f},{self.y(value):.1f}" for index, value in enumerate(values))
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self._parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for index, value in enumerate(values):
            self._parts.append(f'<circle cx="{self.x(index):.1f}" cy="{self.y(value):.1f}" r="3" fill="{colour}"/>')
        if not dashed:
            self._key(name, colour)

    def bars(self, name: str, values: Sequence[float], colour: str, place: int, of: int) -> None:
        """`place` of `of` bars at every x."""
        width = 0.8 / of
        pixels = width * (self.x(1) - self.x(0))
        for index, value in enumerate(values):
            left, top = self.x(index - 0.4 + width * place), self.y(value)
            size = f'width="{pixels:.1f}" height="{HEIGHT - BOTTOM - top:.1f}"'
            self._parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}"/>')
        self._key(name, colour)

    def _key(self, name: str, colour: str) -> None:
        self._parts.append(f'<rect x="{self._keys:.0f}" y="29" width="10" height="10" fill="{colour}"/>')
        self._parts.append(_text(self._keys + 14, 38, name, "start"))
        self._keys += 26 + 7 * len(name)

    def svg(self, x: float, y: float) -> str:
        return f'<g transform="translate({x:g} {y:g})">{"".join(self._parts)}</g>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def plot(runs: Sequence[Run]) -> str:
    """Three diagrams: throughput, staleness, and what the controller costs."""
    quiet = steady(runs)
    workers = sorted({run["settings"]["workers"] for run in quiet})
    bounds = sorted({run["settings"]["staleness"] for run in quiet})
    loads = sorted({load_of(run) for run in quiet})
    found = {(own["settings"]["workers"], own["settings"]["staleness"], load_of(own)): own for own in quiet}

    def values(load: int, bound: int, of: Callable[[Run], float]) -> list[float]:
        return [100 * of(found[size, bound, load]) for size in workers]

    names = [str(size) for size in workers]
    title = f"Share of ideal throughput; prompts a place: {loads[0]} dashed, {loads[-1]} solid"
    throughput = Panel(title, names, "workers", range(0, 101, 20))
    cost = Panel("Controller's CPU time, share of a step (K = 4)", names, "workers", [0.001, 0.01, 0.1, 1, 10], log=True)
    for bound, colour in zip(bounds, COLOURS, strict=False):
        for load in loads:
            shares = values(load, bound, lambda run: run["of_ideal_running"])
            throughput.line(f"K = {bound}", shares, colour, dashed=load != loads[-1])
    for load, colour in zip(loads, COLOURS[1:], strict=False):
        cost.line(f"{load} a place", values(load, bounds[-1], lambda run: run["controller"]["share_of_step"]), colour)
    ages = [str(age) for age in range(max(bounds) + 1)]
    title = f"Versions a sample is behind, {workers[-1]} workers, {loads[0]} prompt a place"
    histogram = Panel(title, ages, "versions", range(0, 101, 20))
    for place, (bound, colour) in enumerate(zip(bounds, COLOURS, strict=False)):
        run = found[workers[-1], bound, loads[0]]
        shares = [100 * run["staleness"].get(age, 0) / run["trained"] for age in ages]
        histogram.bars(f"K = {bound}", shares, colour, place, len(bounds))
    panels = "".join(panel.svg(WIDTH * index, 0) for index, panel in enumerate((throughput, histogram, cost)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" fill="#222222">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{panels}</svg>\n'
    )


# the tables


def tables(results: Mapping[str, Any]) -> str:
    """What the page says in figures, as Markdown."""
    parts = [_throughput(results["runs"])]
    parts += [_changing(run) for run in results["runs"] if run["settings"]["scale"]]
    return "\n\n".join([*parts, _ledger(results["ledger"])])


def _throughput(runs: Sequence[Run]) -> str:
    lines = [
        "| workers | prompts a place | K | of the ideal, running | whole run | of the ideal within K | oldest sample "
        "| controller, of a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in steady(runs):
        own = run["settings"]
        shares = " | ".join(f"{run[name]:.3f}" for name in ("of_ideal_running", "of_ideal", "of_ideal_within_k"))
        oldest, cost = max(map(int, run["staleness"])), run["controller"]["share_of_step"]
        lines.append(f"| {own['workers']} | {load_of(run)} | {own['staleness']} | {shares} | {oldest} | {cost:.3%} |")
    return "\n".join(lines)


def _changing(run: Run) -> str:
    own = run["settings"]
    sizes = ", ".join(f"{workers} at {second:g} s" for second, workers in own["scale"])
    lines = [
        f"{own['prompts']:,} prompts, K = {own['staleness']}, {own['workers']} workers, then {sizes}; "
        f"{run['deaths']} deaths:",
        "",
        "| | count | median, s | worst, s |",
        "|---|---|---|---|",
    ]
    shown = {
        "a death that is told, to the proof of the next worker": run["recovery_s"]["told"],
        "a death found by silence, the same": run["recovery_s"]["silent"],
        "a prompt lost with its worker, to its answer": run["lost_prompt_to_answer_s"],
    }
    lines += [f"| {name} | {of['count']} | {of['median']:g} | {of['worst']:g} |" for name, of in shown.items() if of]
    summary = (
        f"{run['trained']:,} were trained on once, {run['dropped']} dropped with their reasons, {run['sent_again']} sent "
        f"again; {run['of_ideal_running']:.3f} of the ideal throughput; the oldest sample was "
        f"{max(map(int, run['staleness']))} versions behind; the controller took "
        f"{run['controller']['share_of_step']:.3%} of a step."
    )
    return "\n".join([*lines, "", summary])


def _ledger(costs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| prompts | of them open | memory | a commit | bytes written | going on from it |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {own['prompts']:,} | {own['open_prompts']:,} | {own['memory_bytes'] / 2**20:.1f} MiB | "
        f"{own['commit_s'] * 1e3:.1f} ms | {own['committed_bytes']:,} | {own['restore_s']:.2f} s |"
        for own in costs
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what the simulation wrote")
    parser.add_argument("--svg", type=Path, help="where the plot goes")
    parser.add_argument("--markdown", type=Path, help="the page whose tables are replaced")
    options = parser.parse_args()
    results = json.loads(options.json.read_text())["results"]
    if options.svg:
        options.svg.write_text(plot(results["runs"]))
    if options.markdown:
        before, _, after = options.markdown.read_text().split(MARK)
        options.markdown.write_text(f"{before}{MARK}\n\n{tables(results)}\n\n{MARK}{after}")


if __name__ == "__main__":
    main()
