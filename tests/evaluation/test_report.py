# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Runs to tables, pictures, a page and results for a card; what may not share a table is refused."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from evaluating import record, ten, write_json, write_jsonl, write_run, write_verdicts
from matplotlib.figure import Figure
from PIL import Image

from transformers_valley.evaluation.benchmark import Column
from transformers_valley.evaluation.records import read_json
from transformers_valley.evaluation.report import report
from transformers_valley.evaluation.run import load_run
from transformers_valley.evaluation.statistics import Estimate
from transformers_valley.evaluation.table import Table


class Page(HTMLParser):
    """Tags of a page, and what its script was given."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)
        (line,) = re.findall(r"^const names = .*$", text, re.MULTILINE)
        decoder, self.given, rest = json.JSONDecoder(), [], line
        while match := re.search(r"(names|questions|strips) = ", rest):
            value, end = decoder.raw_decode(rest[match.end() :])
            self.given.append(value)
            rest = rest[match.end() + end :]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def row(table: Table, name: str) -> dict:
    return dict(zip(table.header, next(row for row in table.rows if row[0] == name), strict=True))


# --- Tables --------------------------------------------------------------------------------------------------------


def test_own_questions_by_type_and_with_the_blind_baseline(tmp_path):
    result = report(write_run(tmp_path, [*ten(8), *ten(3, "blind")]))
    numbers, views = result.tables
    assert row(numbers, "all")["exact match"].value == 80 and row(numbers, "type: odd")["asked"] == 5
    assert row(numbers, "type: even")["right"].value == 80
    shown = row(views, "all")
    assert shown["with its clip"].value == 80 and shown["blind"].value == 30
    assert shown["gain over blind"].value == 50 and shown["gain over blind"].low > 0
    text = (tmp_path / "report/report.md").read_text()
    assert text == str(result) and "valley: own questions, 10 questions." in text and "Judge: none" in text


def test_table_counts_what_was_not_answered_cut_off_and_unjudged(tmp_path):
    records = ten(8)
    records[0] |= {"answer": None, "error": "it is gone"}
    records[1] |= {"is_cut": True}
    run = write_verdicts(write_run(tmp_path, records))
    rows = (run / "judge-m/verdicts.jsonl").read_text().splitlines()
    changed = json.loads(rows[2]) | {"unjudged": "no verdict in 3 replies"}
    (run / "judge-m/verdicts.jsonl").write_text("\n".join([*rows[1:2], json.dumps(changed), *rows[3:]]) + "\n")
    (numbers,) = report(run).tables
    assert (row(numbers, "all")["asked"], row(numbers, "all")["answered"], row(numbers, "all")["cut off"]) == (
        10,
        9,
        1,
    )
    assert row(numbers, "all")["right"].count == 8
    assert any("1 not answered, 1 answer unjudged" in note for note in numbers.notes)
    assert any("Judge: m (endpoint), revision unknown, temperature 0, protocol prompts" in n for n in numbers.notes)


def test_one_question_is_told_in_the_singular(tmp_path):
    assert "valley: own questions, 1 question." in str(report(write_run(tmp_path, ten(1)[:1])))


def test_paper_stands_above_ours(tmp_path):
    run = write_verdicts(write_run(tmp_path, ten(8), "msvd_qa"))
    table = report(run).tables[0]
    assert table.name == "table1" and "as published" in table.notes[0]
    published = {row[0]: row[1:] for row in table.rows}
    assert published["Valley-v3"][:2] == ["69.2", "4.0"]
    assert [name for name in table.header if "MSRVTT" in name] == []
    ours = published["valley"]
    assert (ours[0].value, ours[1].value) == (50, 2.5) and ours[-1] == "10 of 10"


def test_two_checkpoints_on_the_same_questions(tmp_path):
    """Nine to three: six questions only the first has right, none only the second; McNemar gives 2 / 64."""
    first, second = write_run(tmp_path / "a", ten(9), label="A"), write_run(tmp_path / "b", ten(3), label="B")
    result = report([first, second])
    comparison = result.tables[-1]
    found = row(comparison, "B: right")
    assert found["difference"].value == -60 and found["p"] == "0.031" and found["test"] == "McNemar"
    assert found["right: only A / only the other"] == "6 / 0"
    assert {path.name for path in result.folder.iterdir()} == {
        *("report.md", "index.html", "results.json", "run1.csv", "run1.tex", "run1.png", "run2.csv", "run2.tex"),
        *("run2.png", "comparison1.csv", "comparison1.tex", "comparison1.png"),
    }


def test_csv_has_bounds_in_columns_and_latex_escapes(tmp_path):
    table = Table("t", "100% & more", ["a_b", "n"], [["x|y", Estimate(50.0, 40.0, 60.0, 9)], ["z", None]], ["Note."])
    rows = list(csv.reader(table.to_csv().splitlines()))
    assert rows == [["a_b", "n", "n low", "n high"], ["x|y", "50.0", "40.0", "60.0"], ["z", "", "", ""]]
    assert r"\caption{100\% \& more. Note.}" in table.to_latex() and r"a\_b & n \\" in table.to_latex()
    assert r"x\|y" in table.to_markdown() and "50.00 [40.00, 60.00]" in table.to_markdown()


# --- What is refused -----------------------------------------------------------------------------------------------


def test_runs_that_cannot_share_a_report(tmp_path):
    first = write_verdicts(write_run(tmp_path / "a", ten(9), label="A"), "one")
    other = write_verdicts(write_run(tmp_path / "b", ten(3), label="B"), "two")
    with pytest.raises(ValueError, match="were judged differently: .*one .endpoint.*two .endpoint.*share no table"):
        report([first, other])
    fewer = write_run(tmp_path / "c", ten(9)[:5], label="C")
    plain = write_run(tmp_path / "d", ten(9), label="D")
    with pytest.raises(ValueError, match=r"different questions of own questions \(10 and 5\)"):
        report([plain, fewer])
    with pytest.raises(ValueError, match="both called 'D': repeat the command of one of them with another label"):
        report([plain, write_run(tmp_path / "e", ten(9), label="D")])
    judged = write_verdicts(write_run(tmp_path / "f", ten(9), label="F"))
    with pytest.raises(ValueError, match="f was judged, and .*d was not: Judge: m .endpoint.*share no table"):
        report([judged, plain])
    with pytest.raises(ValueError, match="g has blind answers only: all numbers are of answers with the clips shown"):
        report(write_run(tmp_path / "g", ten(9, "blind")))
    with pytest.raises(FileNotFoundError, match="nothing holds no run of valley evaluate: there is no such folder"):
        report(tmp_path / "nothing")


def test_an_answer_without_a_verdict_is_undecided_where_others_were_judged(tmp_path):
    """Its words may fit its reference, and a number made of both would compare a judge with string match."""
    run = write_verdicts(write_run(tmp_path, [*ten(10), *ten(10, "shuffled")]))
    found = load_run(run)
    assert found.main("clip").count == 10 and found.main("shuffled").count == 0 and found.unjudged() == 10
    assert "10 answers unjudged" in found.describe_questions()
    assert "gain" not in str(report(run).tables[0])


def test_older_report_is_replaced_and_nothing_else(tmp_path):
    a, b = write_run(tmp_path / "a", ten(9), label="A"), write_run(tmp_path / "b", ten(3), label="B")
    folder = report([a, b], tmp_path / "report").folder
    (folder / "notes.txt").write_text("mine")
    report(a, folder)
    assert not (folder / "comparison1.csv").exists() and (folder / "notes.txt").read_text() == "mine"


# --- Results, plots, page ------------------------------------------------------------------------------------------


def test_results_for_a_model_card(tmp_path):
    result = report(write_verdicts(write_run(tmp_path, ten(8), "msvd_qa", label="v1")))
    found = {r.metric_type: r for r in result.eval_results()}
    assert set(found) == {"acc", "score"}
    accuracy = found["acc"]
    assert (accuracy.dataset_type, accuracy.dataset_split, accuracy.metric_value) == ("msvd_qa", "test", 50.0)
    assert "95%" in accuracy.metric_name and "Judge: m (endpoint)" in accuracy.metric_name
    saved = read_json(result.folder / "results.json")["runs"][0]
    assert saved["numbers"]["Acc."]["value"] == 50 and saved["answered"] == 10


def test_picture_has_a_point_for_every_group(tmp_path):
    report(write_run(tmp_path, [*ten(8), *ten(3, "blind")]))
    with Image.open(tmp_path / "report/run1.png") as picture:
        assert picture.width > 400 and picture.height > 200


@pytest.mark.parametrize(("benchmark", "label", "most"), [("own", "% right", 100), ("video_chatgpt", "score", 5)])
def test_axis_shows_all_that_a_number_can_be(tmp_path, monkeypatch, benchmark, label, most):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (drawn.append(figure), file.touch()))
    report(write_run(tmp_path, [*ten(0), *ten(0, "blind")], benchmark))
    (axes,) = drawn[0].axes
    low, high = axes.get_xlim()
    assert axes.get_xlabel() == f"{label}, with 95% intervals" and -most / 20 < low < 0 and most < high < 1.05 * most


def test_marker_on_the_edge_of_a_small_picture_is_whole(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (drawn.append(figure), file.touch()))
    report(write_run(tmp_path, [*ten(0), *ten(10, "blind")]))
    drawn[0].draw_without_rendering()
    (axes,) = drawn[0].axes
    for line in axes.lines:  # markers, and the caps of their intervals
        for x, y in axes.transData.transform(line.get_xydata()) - axes.bbox.min:
            assert 4 < x < axes.bbox.width - 4 and 4 < y < axes.bbox.height - 4


def test_page_holds_every_question_with_frames_answers_and_verdicts(tmp_path):
    records = ten(8)
    Image.new("RGB", (144, 72)).save(tmp_path / "strip.jpg")
    shown = {"path": "0.mp4", "num_frames": 3, "times": [0, 2, 4], "strip": "strip.jpg", "strip_frames": [0, 2]}
    records[0]["shown"] = [shown]
    run = write_verdicts(write_run(tmp_path, [*records, *ten(3, "blind")]))
    text = (report(run).folder / "index.html").read_text()
    names, questions, strips = Page(text).given
    assert names == ["valley"] and len(questions) == 10 and len(strips) == 1
    first = questions[0]
    assert first["shown"] == [{"path": "0.mp4", "count": 3, "times": [0, 4]}] and first["strip"] in strips
    assert [(run["status"], run.get("view")) for run in first["runs"]] == [("right", None), ("undecided", "blind")]
    assert first["runs"][0]["replies"] == [{"aspect": "qa", "unjudged": None, "text": "<b>said</b>"}]


def test_what_models_write_is_text_on_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = write_run(tmp_path, [record("q:0", evil, question=evil, source=evil)], label=evil)
    page = Page((report(run).folder / "index.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attributes for tag, attributes in page.tags if tag == "img" and attributes.get("src") == "x"]
    assert page.given[1][0]["runs"][0]["answer"] == evil


def test_page_asks_nobody_for_anything(tmp_path):
    text = (report(write_run(tmp_path, ten(8))).folder / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)\w""", text) and "default-src 'none'" in text


def test_submission_of_video_bench(tmp_path):
    choices = {"A": "red", "B": "blue"}
    facts = {"key": "7", "video_id": "v7"}
    told = record("MOT/7", "It is blue.", answers=[], source="MOT", choices=choices, facts=facts)
    run = write_run(tmp_path, [told], "video_bench")
    by = {"kind": "local", "model": "m", "temperature": 0}
    write_json(run / "judge-m/judge.json", {"created": "2026", "judge": by, "prompts": "protocol"})
    verdict = {"view": "clip", "id": "MOT/7", "aspect": "choice", "unjudged": None, "choice": "B", "replies": []}
    write_jsonl(run / "judge-m/verdicts.jsonl", [verdict])
    found = read_json(report(run).folder / "run1-video_bench-submission.json")
    assert found["MOT"]["7"]["output_chatgpt_choice"] == "B" and found["MOT"]["7"]["video_id"] == "v7"


def test_column_without_items_is_a_dash():
    assert Table("t", "T", ["a", "b"], [["x", Estimate(None, None, None, 0)]]).shown_rows() == [["x", "–"]]
    assert Column("c", ()).count == 0
