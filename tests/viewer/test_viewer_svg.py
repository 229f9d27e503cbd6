"""Charts and boxes: positions computed by hand, hostile names, hostile numbers."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from viewer.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    DrawnBox,
    Series,
    line_chart,
    nice_ticks,
    number,
    picture,
    shown_size,
    to_shown,
)


def _svg(html: str) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", html, re.S)[0])


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 50, [0, 10, 20, 30, 40, 50]),
        (-1.3, 2.2, [-1, 0, 1, 2]),
        (3e-5, 7e-5, [3e-5, 4e-5, 5e-5, 6e-5, 7e-5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks, abs=1e-15)


def test_short_numbers():
    assert [number(v) for v in (0.0, 0.12345678, 1234.5, 0.00002, -3.0, math.nan, 2e7)] == [
        "0",
        "0.1235",
        "1234",
        "2.0e-5",
        "-3",
        "n/a",
        "2.0e7",
    ]


def test_a_curve_spans_the_plot():
    chart = _svg(line_chart("t", [Series("a", ((0, 1.0), (5, 3.0), (10, 2.0)))]))
    path = next(node for node in chart.iter("path"))
    points = [tuple(map(float, p)) for p in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d"))]
    assert [x for x, _ in points] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.06)
    plot, margin = HEIGHT - TOP - BOTTOM, 0.06 * 2  # six per cent of the range of 2, above and below
    ys = [HEIGHT - BOTTOM - (y - (1 - margin)) / (2 + 2 * margin) * plot for y in (1, 3, 2)]
    assert [y for _, y in points] == pytest.approx(ys, abs=0.06)


def test_values_that_cannot_be_drawn_interrupt_the_curve():
    html = line_chart("t", [Series("a", ((0, 1.0), (1, math.nan), (2, 2.0), (3, 1e200), (4, math.inf), (5, 1.5)))])
    path = next(_svg(html).iter("path")).get("d")
    assert path.count("M") == 3 and "L" not in path
    assert "nan" not in html and "inf" not in html


def test_logarithmic_axis_places_decades_evenly():
    html = line_chart("gap", [Series("a", ((0, 1e-6), (1, 1e-5), (2, 1e-4), (3, 0.0)))], log=True)
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", next(_svg(html).iter("path")).get("d"))]
    assert len(ys) == 3 and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)
    assert "<b>1.0e-4</b>" in html


def test_nothing_to_draw_is_said():
    assert "No values." in line_chart("t", [])
    assert "No values." in line_chart("t", [Series("a", ((0, math.nan),))])
    assert "<svg" in line_chart("one point", [Series("a", ((3, 0.0),))])


def test_names_are_escaped():
    html = line_chart("<b>&", [Series("<script>", ((0, 1), (1, 2)))])
    assert "<script>" not in html and "<b>&" not in html
    assert "&lt;script&gt;" in html


def test_boxes_go_from_their_frame_to_the_shown_frame_axis_by_axis():
    """A 1000 x 500 picture seen by the model as 504 x 252 + one axis squeezed: 448 x 252."""
    assert shown_size((1000, 500)) == (320.0, 160.0)
    box = DrawnBox((112, 63, 448, 252), (448, 252), "bed", "after")
    assert to_shown(box, 320, 160) == pytest.approx((80, 40, 320, 160))
    rects = [
        node for node in _svg(picture("data:,", (1000, 500), [box])).iter("rect") if node.get("class") == "outline"
    ]
    assert [float(rects[0].get(key)) for key in ("x", "y", "width", "height")] == [80, 40, 240, 120]


def test_labels_stay_inside_and_are_escaped():
    boxes = [
        DrawnBox((-50, -50, 900, 900), (320, 160), "<i>" + "x" * 100, kind) for kind in ("true", "after", "before")
    ]
    html = picture('data:,"><script>', (1000, 500), boxes)
    root = _svg(html)
    for plate in (node for node in root.iter("rect") if node.get("class") == "plate"):
        x, y, w, h = (float(plate.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 <= x and x + w <= 320 and 0 <= y and y + h <= 160
    assert "<i>" not in html and "<script>" not in html
