"""The report page, built from files as a run leaves them, and read back with an HTML parser."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from viewer.files import RunFiles
from viewer.report import curves_of, write_report

EVIL = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">\ud800 & "quotes"'


class Page(HTMLParser):
    """Tags with attributes, text, and a check that what is opened is closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str, css: str | None = None) -> list[dict]:
        return [a for t, a in self.tags if t == tag and (css is None or css in (a.get("class") or "").split())]


def _jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _eval_row(i, picture, predicted, iou, flag=None):
    return {
        "row": f"heldout/spld_grounding_data/{i}",
        "mode": "ground",
        "question_type": "object localization",
        "data_type": "single_image",
        "question": f"Where is the lamp number {i}?",
        "options": None,
        "media": [str(picture)],
        "original_size": [300, 200],
        "processed_size": [252, 168],
        "text": "…",
        "answer": None,
        "truth": None,
        "flag": flag,
        "scores": {"iou": iou},
        "boxes_true": [{"label": "lamp", "bbox": [25.2, 16.8, 126.0, 84.0]}],
        "boxes_predicted": predicted,
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my run"
    picture = tmp_path / "frame.png"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(picture)
    other = tmp_path / "other.png"
    Image.new("RGB", (2000, 1000), (30, 30, 200)).save(other)
    record = {"before": 0.05, "after": 0.55, "n": 240, "ci95": [0.44, 0.56], "ci95_before": [0.03, 0.07]}
    worse = {"before": 0.5, "after": 0.25, "n": 210, "ci95": [-0.3, -0.2]}
    _jsonl(folder / "sft1" / "metrics.jsonl", [{"step": i, "loss": 3 / (i + 1)} for i in range(5)])
    predicted = [
        {"label": EVIL, "bbox": [0.0, 0.0, 63.0, 42.0]},
        {"label": "bad", "bbox": [1, 2, 3]},
        {"label": "huge", "bbox": [0, 0, 10**400, 5]},
    ]
    _jsonl(folder / "sft1" / "eval_before.jsonl", [_eval_row(0, picture, None, 0.0, "unparsable")])
    _jsonl(
        folder / "sft1" / "eval_after.jsonl",
        [
            _eval_row(0, picture, predicted, 0.25),
            _eval_row(1, picture, [], 0.0),
            _eval_row(2, other, [], 0.0),
            _eval_row(3, tmp_path / "gone.png", [], 0.0),
        ],
    )
    _jsonl(
        folder / "grpo" / "metrics.jsonl",
        [
            {"step": i, "reward": i * 0.1, "reward_format": 1.0, "kl": float("nan"), "logprob_gap_max": 1e-5}
            for i in range(40)
        ],
    )
    _jsonl(
        folder / "grpo" / "traces" / "0.jsonl",
        [
            {
                "step": i,
                "version": i,
                "row": f"train/x/{i}",
                "prompt": "Question: " + EVIL,
                "truth": "B",
                "completions": [
                    {"text": EVIL, "outcome": "ok", "total": 1.25, "components": {"format": 1.0, "answer": 0.25}},
                    {"text": "cut", "outcome": "truncated", "total": None, "components": {}},
                ],
            }
            for i in range(100)
        ],
    )
    (folder / "config.yaml").write_text("name: <b>my</b>\n")
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "stages": {"sft1": {"localization_iou": record}, "grpo": {"reward": worse}},
                "seconds": {"sft1": 12.5},
                "versions": {"torch": "2.13.0"},
                "hardware": {"cpu": "two cores"},
            }
        )
    )
    return folder


def _read(folder) -> Page:
    path = write_report(folder)
    assert path == folder / "report" / "index.html" and [p.name for p in path.parent.iterdir()] == ["index.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_no_network(run):
    page = _read(run)
    assert page.named("script") == [] and page.named("img") == [] and page.named("link") == []
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:image/jpeg;base64,")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
    assert "default-src 'none'" in page.named("meta")[1]["content"]


def test_hostile_text_is_shown_as_text(run):
    page = _read(run)
    assert "alert(1)</script><img src=x" in page.text
    assert "name: <b>my</b>" in page.text


def test_boxes_stand_in_the_shown_frame(run):
    """Processed 252 x 168 of a 300 x 200 picture is shown as 320 x 213.33: every corner times 320 / 252."""
    page = _read(run)
    outlines = [[float(a[key]) for key in ("x", "y", "width", "height")] for a in page.named("rect", "outline")]
    assert outlines[0] == pytest.approx([32.0, 21.333, 128.0, 85.333], abs=1e-3)  # a tenth to a half of the picture
    assert outlines[1] == pytest.approx([0.0, 0.0, 80.0, 53.333], abs=1e-3)  # the quarter that was predicted
    kinds = [a["class"].split()[1] for a in page.named("g", "box")]
    assert kinds == ["true", "after", "true"]  # rows 0 and 2; row 1 is on the same picture, row 3's picture is gone
    assert "Picture not found" in page.text and "IoU 0.00 (unparsable) → 0.25" in page.text


def test_pictures_are_small_jpegs(run):
    uris = [a["href"] for a in _read(run).named("image")]
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size for uri in uris]
    assert sizes == [(300, 200), (480, 240)]


def test_results_say_before_after_and_interval(run):
    page = _read(run)
    for piece in ("0.050", "0.550", "+0.500", "[+0.440, +0.560]", "[0.030, 0.070]", "-0.250", "240", "210"):
        assert piece in page.text
    assert len(page.named("span", "up")) == 1 and len(page.named("span", "down")) == 1
    assert page.text.count("no result yet") == 2  # sft2 and coldstart


def test_curves_of_every_stage_or_a_word_instead(run):
    page = _read(run)
    assert "No step recorded (not run, or not yet): Stage 2 · understanding (SFT on questions); Cold start" in page.text
    labels = [a.get("aria-label") for a in page.named("svg")]
    assert labels[:1] == ["picture with boxes"] and "Reward and its components, training prompts" in labels
    assert "Stage 1 · perception (SFT on boxes): loss, nats per token" in labels
    assert "No values." in page.text  # kl holds only NaN


def test_traces_are_spread_over_the_run_and_hold_components(run):
    page = _read(run)
    assert len(page.named("details", "trace")) == 12
    for piece in ("step 0 ·", "step 99 ·", "step 9 ·", "reward 1.25", "format 1", "answer 0.25", "truncated"):
        assert piece in page.text, piece


def test_an_empty_run_is_a_page_too(tmp_path):
    page = _read(tmp_path)
    for piece in ("no result yet", "No traces", "No held-out rows with boxes", "No questions have been evaluated"):
        assert piece in page.text


def test_damage_is_named_and_survived(run):
    (run / "summary.json").write_text("{")
    with (run / "grpo" / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 40, "rew')
    page = _read(run)
    assert "summary.json could not be read" in page.text
    assert "grpo/metrics.jsonl: 2 unreadable line(s) left out" in page.text


def test_answers_are_listed_with_both_sides(run):
    row = {
        "row": "h/spatial/1",
        "question_type": "relative distance",
        "data_type": "video",
        "question": "Which is nearest?",
        "options": ["A. bed", "B. <lamp>"],
        "media": ["a", "b"],
        "truth": "B",
        "scores": {"accuracy": 0.0},
    }
    _jsonl(run / "sft2" / "eval_before.jsonl", [row | {"answer": None, "flag": "unparsable"}])
    _jsonl(run / "sft2" / "eval_after.jsonl", [row | {"answer": "B", "flag": None, "scores": {"accuracy": 1.0}}])
    page = _read(run)
    for piece in ("Which is nearest?", "B. <lamp>", "unparsable", "accuracy 1", "relative distance, video"):
        assert piece in page.text


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "nothing")


def test_a_repeated_step_of_a_resumed_run_counts_once():
    rows = [{"step": 0, "kl": 1}, {"step": 1, "kl": 2}, {"step": 1, "kl": 3}, {"step": 2, "kl": True}]
    assert [s.points for s in curves_of(rows, ["kl", "absent"])] == [((0, 1), (1, 3))]


def test_a_prefix_takes_all_its_columns():
    rows = [{"step": 0, "seconds_learn": 1.0, "seconds_generate": 2.0}, {"step": 1, "seconds_wait_all": 3.0}]
    assert [s.name for s in curves_of(rows, ["seconds_*"])] == ["generate", "learn", "wait all"]


def test_traces_of_several_files_are_read_in_order(tmp_path):
    for part in range(3):
        _jsonl(tmp_path / "grpo" / "traces" / f"{part:03d}.jsonl", [{"step": part * 10 + i} for i in range(10)])
    assert [t["step"] for t in RunFiles(tmp_path).traces(4)] == [0, 10, 19, 29]
    assert RunFiles(tmp_path).traces(0) == []
