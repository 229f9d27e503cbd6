"""The folder that `ladder data traces` writes: cold-start rows to be measured on follow preset and frame of the run."""

import hashlib
import json

from data.prompts import user_text
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, load_split
from data.trace_folder import write_folder
from data_folders import rows_of, write_split

THOUGHT = "<think>I see it\u2028there.</think>"


def test_rows_to_be_measured_on_follow_the_preset_and_the_frame(tmp_path):
    source, scene = tmp_path / "source", "scene0007_00"
    write_split(source / "train", rows_of("scene0000_00"))
    write_split(source / "heldout", rows_of(scene))
    split = load_split(source, "heldout")
    asked = [split.grounding[1], split.spatial[0], split.spatial[2]]
    media = [[f"{scene}/0.jpg"], [f"{scene}/0.jpg"], [f"{scene}/{number}.jpg" for number in range(3)]]
    answers = [json.dumps([{"bbox_2d": [1, 2, 4, 4], "label": "bowl"}]), "A", "27.5"]
    rows = [{"question_id": number, "image": pictures, "data_type": row.data_type, "prompt": user_text(row, "think", "paper"),
             "solution": f"{THOUGHT}<answer>{answer}</answer>"}
            for number, (row, pictures, answer) in enumerate(zip(asked, media, answers), start=10)]
    rows.append(rows[1] | {"question_id": 20, "prompt": "Words of somebody else: left or right?"})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (source / "heldout" / COLDSTART_FILE).write_text("".join(lines), encoding="utf-8")
    counts = {name: {"rows": {GROUNDING_FILE: 2, SPATIAL_FILE: 3, COLDSTART_FILE: count}}
              for name, count in (("train", 2), ("heldout", 4))}
    (source / "manifest.json").write_text(json.dumps({"counts": counts, "sha256": {}, "config": {"preset": "paper"}}))

    write_folder(source, tmp_path / "out", (), "ladder", lambda size: (2 * size[0], 2 * size[1]), {})
    written = tmp_path / "out" / "heldout" / COLDSTART_FILE
    boxes, letter, number, foreign = load_split(tmp_path / "out", "heldout").coldstart
    for row, own in zip((boxes, letter, number), asked):
        assert row.prompt_text == user_text(own, "think", "ladder") != user_text(own, "think", "paper")
    assert boxes.solution == f'{THOUGHT}<answer>[{{"bbox_2d":[20,40,80,88],"label":"bowl"}}]</answer>'  # twice 10 20 40 44
    assert [letter.solution, number.solution] == [row["solution"] for row in rows[1:3]]
    assert written.read_text(encoding="utf-8").endswith(lines[3]) and foreign.prompt_text == rows[3]["prompt"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sha256"][f"heldout/{COLDSTART_FILE}"] == hashlib.sha256(written.read_bytes()).hexdigest()
    assert (source / "heldout" / COLDSTART_FILE).read_text(encoding="utf-8") == "".join(lines), "the source is only read"
