"""The look of the report: one style sheet, light and dark by the reader's system, plain on paper."""

CSS = (
    """
:root { color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #1d2126; --soft: #646c76; --line: #dfe1e4; --good: #12753f; --bad: #b3261e;
  --true: #1a9850; --guess: #e07400;
  --s0: #1f6fb4; --s1: #d95f02; --s2: #12805c; --s3: #b0257d;
  --s4: #7a5cc4; --s5: #8c6d00; --s6: #5b6670; --s7: #a63a3a; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa3ad; --line: #343a41; --good: #5fd08f; --bad: #ff8a80;
  --true: #35d07f; --guess: #ffa033;
  --s0: #6cb2f0; --s1: #ff9e57; --s2: #4fcf9f; --s3: #f07bc0;
  --s4: #b49cf5; --s5: #d9b93c; --s6: #a5b0ba; --s7: #f08a8a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 2px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 6px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 0.95rem; margin: 18px 0 6px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.soft, .none, small { color: var(--soft); }
nav a { color: var(--soft); margin-right: 16px; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: 0.78rem; font-weight: 600; color: var(--soft); text-transform: uppercase; letter-spacing: 0.04em; }
td.number, th.number { text-align: right; white-space: nowrap; }
td small { display: block; font-size: 0.78rem; }
.up { color: var(--good); font-weight: 600; } .down { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.scroll tr:last-child td { border-bottom: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 16px; }
.grid.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  break-inside: avoid; }
figcaption { font-size: 0.85rem; font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere; }
figcaption p { font-weight: 400; margin: 2px 0; }
svg { display: block; width: 100%; height: auto; }
svg line.grid { stroke: var(--line); stroke-width: 1; } svg text.tick { fill: var(--soft); font-size: 11px; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: block; font-weight: 400; color: var(--soft); }
.key { display: inline-block; margin-right: 12px; white-space: nowrap; } .key b { color: var(--ink); font-weight: 600; }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; }
.chart { display: flex; flex-direction: column; } .chart svg { margin-top: auto; }
.picture { border-radius: 4px; overflow: hidden; margin-bottom: 6px; }
.box .outline { fill: none; stroke-width: 2.2; } .box text { font-size: 11px; fill: #fff; }
.box.true .outline { stroke: #2ee07f; } .box.true .plate { fill: #0d6b38; }
.box.after .outline { stroke: #ff9020; } .box.after .plate { fill: #a34a00; }
.box.before .outline { stroke: #ff9020; stroke-dasharray: 5 4; stroke-width: 1.6; }
.box.before .plate { fill: #5b4634; opacity: 0.85; } .box.before text { font-style: italic; }
.swatch { display: inline-block; width: 26px; border-top: 3px solid; margin: 0 6px 4px 0; vertical-align: middle; }
.swatch.true { color: var(--true); } .swatch.after { color: var(--guess); }
.swatch.before { color: var(--guess); border-top-style: dashed; margin-left: 14px; }
.swatch.after { margin-left: 14px; }
pre { margin: 6px 0; padding: 9px 11px; border-radius: 6px; background: var(--page); border: 1px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; font: 0.82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
.trace { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
  margin: 0 0 12px; }
.trace summary, details.file summary { cursor: pointer; overflow-wrap: anywhere; }
.completion { margin: 10px 0 0; break-inside: avoid; }
.chip { display: inline-block; padding: 0 8px; margin: 0 5px 3px 0; border-radius: 10px; border: 1px solid var(--line);
  font-size: 0.78rem; font-variant-numeric: tabular-nums; } .chip.total { font-weight: 700; }
.chip.bad { color: var(--bad); border-color: var(--bad); }
"""
    + "".join(
        f".c{i} {{ stroke: var(--s{i}); }} .d{i} {{ fill: var(--s{i}); }} .k{i} i {{ background: var(--s{i}); }}\n"
        for i in range(8)
    )
    + """
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; }
  body { font-size: 11px; } main { max-width: none; padding: 0; } nav { display: none; } h2 { break-after: avoid; }
  .grid { grid-template-columns: repeat(2, 1fr); } .grid.narrow { grid-template-columns: repeat(3, 1fr); }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
)
