"""The run report: one static page made from the files of a run, nothing else.

What holds
    * The page is one file: inline style, inline SVG, pictures as data URIs, no script, no network (its content policy
      forbids both). It is written to a temporary name and then renamed.
    * Everything from files is escaped: model text is treated as hostile.
    * Whatever is missing (a stage that did not run, empty metrics, a picture that is gone) is said on the page; the
      report of an unfinished run is a page too.
    * Pictures and traces are not picked by hand: pictures are the first of the evaluation's (hashed) order, traces are
      evenly spread over the run.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Sequence

from viewer.files import STAGES, RunFiles, embed_picture
from viewer.style import CSS
from viewer.svg import DrawnBox, Series, line_chart, number, picture

TITLES = {
    "sft1": "Stage 1 · perception (SFT on boxes)",
    "sft2": "Stage 2 · understanding (SFT on questions)",
    "coldstart": "Cold start (SFT on traces)",
    "grpo": "Stage 3 · reasoning (GRPO)",
}
#: title, keys (a trailing * takes every key with that prefix), logarithmic axis
GRPO_CHARTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Reward and its components, training prompts", ("reward", "reward_*"), False),
    ("KL to the reference, nats per token", ("kl",), False),
    ("Completion length, tokens", ("completion_tokens", "completion_tokens_max"), False),
    ("Log-prob gap, engine to learner, nats", ("logprob_gap_mean", "logprob_gap_max"), True),
    (
        "Shares of completions and groups",
        ("valid_fraction", "zero_variance_fraction", "clip_fraction", "truncated_fraction"),
        False,
    ),
    ("Importance ratio", ("is_ratio_mean", "is_ratio_max"), False),
    ("Loss and gradient norm", ("loss", "grad_norm"), False),
    ("Seconds per step", ("seconds_*",), False),
    ("Samples per second", ("samples_per_s",), False),
)
_ALWAYS = {GRPO_CHARTS[0][0], GRPO_CHARTS[1][0]}  # drawn even when empty: their absence is news
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONG_TEXT = 6000  # characters of one prompt or completion shown
_LARGEST = 1e30  # a number beyond this is no coordinate and no metric


def write_report(run_folder: Path, pictures: int = 12, traces: int = 12) -> Path:
    """Write `run_folder`/report/index.html and return its path. FileNotFoundError when there is no such run folder."""
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        raise FileNotFoundError(f"no run folder at {run_folder}: give the folder that holds config.yaml and the stages")
    run = RunFiles(run_folder)
    summary = run.summary()
    sections = [
        ("results", "Results", _results(summary)),
        ("pictures", "Held-out pictures", _pictures(run, pictures)),
        ("curves", "Training curves", _all_curves(run)),
        ("answers", "Held-out answers", _answers(run, pictures)),
        ("traces", "Traces", _traces(run.traces(traces))),
        ("run", "The run", _about(summary, run.config_text())),
    ]
    if run.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
        sections.append(("notes", "Unreadable files", f"<ul>{notes}</ul>"))
    path = run_folder / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".index.html.{os.getpid()}")
    page = _page(run_folder.resolve().name, sections)
    temporary.write_bytes(page.encode("utf-8", errors="replace"))  # model text may hold lone surrogates
    temporary.replace(path)
    return path


def _page(name: str, sections: Sequence[tuple[str, str, str]]) -> str:
    nav = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{escape(title)}</h2>{inner}</section>' for key, title, inner in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · ladder report</title><style>{CSS}</style></head><body><main>"
        f'<h1>{escape(name)}</h1><p class="soft">Perception → understanding → reasoning: one run of the ladder.</p>'
        f"<nav>{nav}</nav>{body}</main></body></html>\n"
    )


# --- results -----------------------------------------------------------------------------------------------------


def _results(summary: dict) -> str:
    stages = _dict(summary.get("stages"))
    rows = []
    for stage in [*STAGES, *(key for key in stages if key not in STAGES)]:
        title = escape(TITLES.get(stage, stage))
        metrics = {k: v for k, v in _dict(stages.get(stage)).items() if isinstance(v, dict)}
        if not metrics:
            rows.append(f'<tr><td>{title}</td><td class="none" colspan="5">no result yet</td></tr>')
        for index, (metric, record) in enumerate(metrics.items()):
            stage_cell = title if index == 0 else ""
            rows.append(f"<tr><td>{stage_cell}</td>{_result_cells(metric, record)}</tr>")
    head = "".join(f'<th class="number">{title}</th>' for title in ("Before", "After", "Difference", "Rows"))
    return (
        f'<div class="scroll"><table><tr><th>Stage</th><th>Held-out metric</th>{head}</tr>{"".join(rows)}</table></div>'
        '<p class="soft">Same held-out prompts before and after, greedy decoding. In brackets: 95 % bootstrap interval '
        "over rows; for the difference, over the paired differences. Unreadable and cut-off answers count as wrong.</p>"
    )


def _result_cells(metric: str, record: dict) -> str:
    before, after = _number(record.get("before")), _number(record.get("after"))
    ci = record.get("ci95")
    difference = after - before if before is not None and after is not None else None
    mark = ""
    if _interval(ci):
        mark = "up" if ci[0] > 0 else "down" if ci[1] < 0 else ""
    shown = "–" if difference is None else f"{difference:+z.3f}"
    rows = _number(record.get("n"))
    return (
        f"<td>{escape(metric.replace('_', ' '))}</td>"
        f'<td class="number">{_three(before)}{_brackets(record.get("ci95_before"))}</td>'
        f'<td class="number">{_three(after)}{_brackets(record.get("ci95_after"))}</td>'
        f'<td class="number"><span class="{mark}">{shown}</span>{_brackets(ci, signed=True)}</td>'
        f'<td class="number">{"–" if rows is None else int(rows)}</td>'
    )


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ci: object) -> bool:
    return isinstance(ci, list) and len(ci) == 2 and all(_number(bound) is not None for bound in ci)


def _brackets(ci: object, signed: bool = False) -> str:
    if not _interval(ci):
        return ""
    low, high = (f"{bound:+z.3f}" if signed else f"{bound:.3f}" for bound in ci)
    return f"<small>[{low}, {high}]</small>"


# --- curves ------------------------------------------------------------------------------------------------------


def _all_curves(run: RunFiles) -> str:
    steps = {stage: run.rows(stage, "metrics.jsonl") for stage in STAGES}
    losses, grpo = [], []
    for stage in STAGES[:3]:
        if steps[stage]:
            losses.append(line_chart(f"{TITLES[stage]}: loss, nats per token", curves_of(steps[stage], ("loss",))))
    for title, keys, log in GRPO_CHARTS if steps["grpo"] else ():
        series = curves_of(steps["grpo"], keys)
        if series or title in _ALWAYS:
            grpo.append(line_chart(title, series, log=log))
    parts = []
    missing = "; ".join(TITLES[stage] for stage in STAGES if not steps[stage])
    if missing:
        parts.append(f'<p class="none">No step recorded (not run, or not yet): {escape(missing)}.</p>')
    if losses:
        parts.append(f'<div class="grid">{"".join(losses)}</div>')
    if grpo:
        parts.append(f'<h3>{escape(TITLES["grpo"])}</h3><div class="grid">{"".join(grpo)}</div>')
    return "".join(parts)


def curves_of(rows: Sequence[dict], keys: Sequence[str]) -> list[Series]:
    """The named columns of metrics rows over `step` (the line number where there is none); absent columns are left out.

    A key `prefix_*` takes every column with that prefix, and drops the prefix from the curve's name.
    """
    labels: dict[str, str] = {}
    for key in keys:
        prefix = key[:-1]
        if key.endswith("*"):
            found = {name for row in rows for name in row if name.startswith(prefix)}
            labels |= {name: name.removeprefix(prefix) for name in sorted(found)}
        else:
            labels[key] = key
    series = []
    for name, label in labels.items():
        points = {_step(row, index): row[name] for index, row in enumerate(rows) if _is_number(row.get(name))}
        if points:  # a resumed run may have written a step twice: the later line holds
            series.append(Series(label.replace("_", " "), tuple(sorted(points.items()))))
    return series


def _step(row: dict, index: int) -> float:
    step = _number(row.get("step"))
    return float(index) if step is None else step


# --- held-out rows -----------------------------------------------------------------------------------------------


def _evaluations(run: RunFiles, stage: str) -> tuple[dict[str, dict], dict[str, dict]]:
    return tuple(
        {str(row.get("row")): row for row in run.rows(stage, f"eval_{when}.jsonl")} for when in ("before", "after")
    )


def _pictures(run: RunFiles, count: int) -> str:
    for stage in STAGES:
        before, after = _evaluations(run, stage)
        base = [row for row in (after or before).values() if row.get("boxes_true") and len(row.get("media") or ()) == 1]
        figures, seen = [], set()
        for row in base:
            if len(figures) == count:
                break
            if row["media"][0] not in seen:  # one question per picture
                seen.add(row["media"][0])
                figures.append(_picture(row, before.get(str(row.get("row"))), after.get(str(row.get("row")))))
        if figures:
            legend = (
                '<span class="swatch true"></span>true<span class="swatch after"></span>predicted'
                '<span class="swatch before"></span>predicted before the stage'
            )
            return (
                f"<p>{escape(TITLES[stage])}: the first {len(figures)} held-out pictures in evaluation order. "
                f'{legend}</p><div class="grid narrow">{"".join(figures)}</div>'
            )
    return '<p class="none">No held-out rows with boxes: stage 1 has not been evaluated.</p>'


def _picture(row: dict, before: dict | None, after: dict | None) -> str:
    question = f"<figcaption><p>{escape(str(row.get('question', '')))}</p></figcaption>"
    scores = " → ".join(_score_text(side) for side in (before, after) if side)
    foot = f'<small>IoU {scores} · {escape(str(row.get("row")))}</small>'
    embedded = embed_picture(Path(str(row["media"][0])))
    if embedded is None:
        return f'<figure>{question}<p class="none">Picture not found: {escape(str(row["media"][0]))}</p>{foot}</figure>'
    uri, size = embedded
    frame = _size(row.get("processed_size")) or size
    boxes = [
        *_drawn(row.get("boxes_true"), frame, "true"),
        *_drawn((before or {}).get("boxes_predicted"), frame, "before"),
        *_drawn((after or {}).get("boxes_predicted"), frame, "after"),
    ]
    return f"<figure>{picture(uri, size, boxes)}{question}{foot}</figure>"


def _score_text(row: dict) -> str:
    value = _number(_dict(row.get("scores")).get("iou"))
    flag = row.get("flag")
    return ("–" if value is None else f"{value:.2f}") + (f" ({escape(str(flag))})" if flag else "")


def _drawn(boxes: object, frame: tuple[float, float], kind: str) -> list[DrawnBox]:
    found = []
    for box in boxes if isinstance(boxes, list) else ():
        corners = box.get("bbox") if isinstance(box, dict) else None
        if isinstance(corners, list) and len(corners) == 4 and all(_number(c) is not None for c in corners):
            x1, y1, x2, y2 = corners
            if x1 < x2 and y1 < y2:  # a malformed box cannot be drawn; its score is 0 already
                found.append(DrawnBox((x1, y1, x2, y2), frame, str(box.get("label", "")), kind))
    return found


def _answers(run: RunFiles, count: int) -> str:
    for stage in ("sft2", "coldstart", "grpo"):
        before, after = _evaluations(run, stage)
        rows = [row for row in (after or before).values() if row.get("truth") is not None][:count]
        if not rows:
            continue
        lines = []
        for row in rows:
            options = f'<small>{escape("  ·  ".join(str(option) for option in row.get("options") or ()))}</small>'
            cells = "".join(_answer_cell(side.get(str(row.get("row")))) for side in (before, after))
            kind = f'{row.get("question_type", "")}, {str(row.get("data_type", "")).replace("_", " ")}'
            lines.append(
                f'<tr><td>{escape(str(row.get("question", "")))}{options}</td><td>{escape(kind)}</td>'
                f'<td>{escape(str(row["truth"]))}</td>{cells}</tr>'
            )
        head = "<tr><th>Question</th><th>Type</th><th>Truth</th><th>Before</th><th>After</th></tr>"
        return f'<p>{escape(TITLES[stage])}</p><div class="scroll"><table>{head}{"".join(lines)}</table></div>'
    return '<p class="none">No questions have been evaluated.</p>'


def _answer_cell(row: dict | None) -> str:
    if row is None:
        return '<td class="none">–</td>'
    answer = row.get("answer")
    shown = escape(_cut(str(answer), 80)) if answer else ""
    score = _number(_dict(row.get("scores")).get("accuracy"))
    facts = [f"accuracy {'–' if score is None else number(score)}"]
    facts += [str(row["flag"])] if row.get("flag") else []
    return f"<td>{shown}<small>{escape(' · '.join(facts))}</small></td>"


# --- traces ------------------------------------------------------------------------------------------------------


def _traces(groups: Sequence[dict]) -> str:
    if not groups:
        return '<p class="none">No traces: GRPO has not run.</p>'
    blocks = []
    for index, group in enumerate(groups):
        completions = [c for c in group.get("completions") or () if isinstance(c, dict)]
        facts = [f"step {group.get('step', '?')}", str(group.get("row", "")), f"{len(completions)} completions"]
        facts += [f"weights {group['version']}"] if "version" in group else []
        inner = f"<h3>Prompt</h3><pre>{_text(group.get('prompt'))}</pre>"
        if group.get("truth") is not None:
            inner += f'<p class="soft">Truth: {_text(group["truth"])}</p>'
        inner += "".join(_completion(c) for c in completions)
        opened = " open" if index in (0, len(groups) - 1) else ""
        blocks.append(f'<details class="trace"{opened}><summary>{escape(" · ".join(facts))}</summary>{inner}</details>')
    return f"<p>{len(blocks)} groups, evenly spread over the run.</p>" + "".join(blocks)


def _completion(completion: dict) -> str:
    chips = []
    total = _number(completion.get("total"))
    outcome = str(completion.get("outcome", "ok"))
    if total is not None:
        chips.append(f'<span class="chip total">reward {number(total)}</span>')
    if outcome != "ok":
        detail = str(completion.get("detail") or "")
        chips.append(f'<span class="chip bad">{escape(outcome)}{escape(": " + detail if detail else "")}</span>')
    for name, value in _dict(completion.get("components")).items():
        shown = number(value) if _is_number(value) else str(value)
        chips.append(f'<span class="chip">{escape(f"{name} {shown}")}</span>')
    return f'<div class="completion">{"".join(chips)}<pre>{_text(completion.get("text"))}</pre></div>'


# --- the run -----------------------------------------------------------------------------------------------------


def _about(summary: dict, config: str) -> str:
    parts = []
    for key in ("seconds", "versions", "hardware"):
        pairs = _flat(summary.get(key))
        if pairs:
            lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
            parts.append(f'<h3>{key.capitalize()}</h3><div class="scroll"><table>{lines}</table></div>')
    if config:
        parts.append(f'<details class="file"><summary>config.yaml</summary><pre>{escape(config)}</pre></details>')
    return "".join(parts) or '<p class="none">No summary and no configuration yet.</p>'


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix} {key}".strip())]
    if value is None or (value == "" and not prefix):
        return []
    return [(prefix, f"{value:,.1f}" if isinstance(value, float) else str(value))]


# --- small things ------------------------------------------------------------------------------------------------


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    """`value` if it is a number that a page can show (finite, below 1e30), else None."""
    return value if _is_number(value) and abs(value) < _LARGEST else None


def _size(value: object) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and all(_number(side) for side in value):
        return value[0], value[1]
    return None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: object) -> str:
    return escape(_cut("" if value is None else str(value), _LONG_TEXT))
