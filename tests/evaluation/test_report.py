import html.parser
import json
import os
import re
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mlpm_guard.cli import opening
from mlpm_guard.datafiles import Record
from mlpm_guard.errors import ConfigurationError, ReportSaveError
from mlpm_guard.evaluation import plots
from mlpm_guard.evaluation.judged import collect
from mlpm_guard.evaluation.page import Page
from mlpm_guard.evaluation.report import check_writable, report, save_report
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.cli_support import SECRET, error_line, jsonl, prompts, run

pytest.importorskip("matplotlib")

HOSTILE = '<script>alert("x")</script>&\x1b[2J\u202e'


def rows(count=40, source="set", category=None):
    """Of every ten rows two are labelled against what they say."""
    return [
        Record(
            line=i + 1,
            id=f"row-{i}",
            conversation=f"{SECRET} {'unsafe' if i % 2 else 'kind'} {i}",
            label=(i % 2) ^ (i % 10 in (0, 3)),
            source=source,
            category=category if i % 2 else None,
        )
        for i in range(count)
    ]


def guard(**options):
    return MockGuard(lambda text: 0.9 if "unsafe" in text else 0.1, **options)


def made(data=None, **options):
    return report(collect([("mine", guard())], rows() if data is None else data, **options))


class Structure(html.parser.HTMLParser):
    """Collects what a browser would, and fails where tags do not match."""

    VOID = frozenset({"meta", "wbr", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], [], [], []
        self.words, self.rows = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def headings(page):
    return re.findall(r"<h[23]>(.*?)</h[23]>", page)


def test_a_report_has_its_sections_and_its_plots_are_well_formed():
    page = made([*rows(40, "a", "crime"), *rows(20, "b")])
    Structure(page)
    wanted = ["Overall", "Ranking", "Scores", "Reliability", "Layers", "Sources", "Categories as labelled", "Cost", "Mistakes"]
    assert [name for name in headings(page) if name in wanted] == wanted
    drawn = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(drawn) == 5
    for svg in drawn:
        ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def test_a_report_fetches_nothing_and_runs_nothing():
    page = made()
    structure = Structure(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(structure.tags)
    for name, value in structure.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_every_id_of_the_page_is_its_own_and_every_reference_is_met():
    one, two = guard(), MockGuard(lambda text: 0.7 if "unsafe" in text else 0.4)
    page = report(collect([("a", one), ("b", two)], rows()))
    ids = Structure(page).ids
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_colours_come_from_the_page_so_that_dark_and_light_both_work():
    page = made()
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    assert {"--ink", "--faint", "--safe", "--unsafe", "--series-0"} <= used
    light, dark = page.split("prefers-color-scheme: dark", 1)
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark.split("* {", 1)[0]
    # The stand-ins are gone, and nothing else is painted in a fixed colour.
    for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b(?!-)", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", svg))


def test_text_is_shown_only_when_it_was_asked_for_twice():
    assert SECRET not in made()
    results = collect([("mine", guard())], rows(), keep_text=True)
    assert SECRET not in report(results)
    assert f"{SECRET} kind 0" in report(results, show_text=True)
    without = collect([("mine", guard())], rows())
    assert SECRET not in report(without, show_text=True)


def test_names_and_texts_cannot_leave_their_place():
    data = [
        Record(
            line=i, id=HOSTILE, conversation=f"kind {HOSTILE} {i}", label=i % 2, source=f"{HOSTILE}{i % 2}", category=HOSTILE
        )
        for i in range(20)
    ]
    page = report(collect([(HOSTILE, guard()), ("$x_1$", guard())], data, keep_text=True), files=[HOSTILE], show_text=True)
    structure = Structure(page)
    assert "script" not in structure.tags
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert "$x_1$" in "".join(structure.words)


def test_mistakes_are_listed_by_id_the_worst_first():
    page = made()
    assert {"4 unsafe and passed by mine", "4 safe and flagged by mine"} <= set(headings(page))
    assert re.findall(r'<td class="text">row-(\d+)</td>', page) == ["0", "10", "20", "30", "3", "13", "23", "33"]


def test_several_guards_stand_side_by_side_with_their_difference():
    better, worse = guard(), MockGuard(lambda text: 0.9 if "unsafe" in text or "8" in text else 0.1)
    page = report(collect([("better", better), ("worse", worse)], rows(60)))
    assert "Difference from better" in headings(page)
    row = re.search(r'<td class="text">worse</td><td>([+-][\d.]+)<small>([+-][\d.]+) to ([+-][\d.]+)</small>', page)
    assert row is not None
    assert float(row[1]) < 0
    assert float(row[2]) <= float(row[1]) <= float(row[3])
    changed = sum("8" in str(i) for i in range(0, 60, 2))
    assert f"<td>{changed} of 60</td>" in page


def test_a_guard_does_not_differ_from_itself():
    page = report(collect([("a", guard()), ("b", guard())], rows()))
    assert "<td>+0.000<small>+0.000 to +0.000</small></td>" in page


def test_every_row_of_a_table_has_as_many_cells_as_its_headings():
    page = report(
        collect([("a", guard()), ("b", guard())], [*rows(20, "x", "crime"), *rows(20, "y", "drugs")], keep_text=True),
        show_text=True,
    )
    for table in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
        assert len(set(Structure(table).rows)) == 1


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_curves_and_says_why(label):
    data = [Record(line=i, id=None, conversation=f"kind {i}", label=label, source="s", category=None) for i in range(10)]
    page = made(data)
    assert "there is one class only" in page
    assert not {"Ranking", "Reliability", "Layers"} & set(headings(page))


def test_rows_that_could_not_be_judged_are_counted_and_named():
    data = [*rows(), Record(line=99, id="empty-one", conversation="", label=0, source="set", category=None)]
    page = made(data)
    assert "not judged" in page
    assert "empty-one" in page
    nothing = [Record(line=i, id=None, conversation="", label=i % 2, source="s", category=None) for i in range(4)]
    page = made(nothing)
    assert "No row could be judged." in page
    assert "Reliability" not in headings(page)


class Knowing(MockGuard):
    """Names categories and measures novelty, as its verdicts' fields allow."""

    def check_batch(self, conversations):
        return [
            verdict.model_copy(
                update={
                    "category": "crime" if "steal" in text else None,
                    "categories": {"crime": 0.8 if "steal" in text else 0.1, "drugs": 0.2},
                    "novelty": 0.3 if verdict.flagged else 0.6,
                }
            )
            for verdict, text in zip(super().check_batch(conversations), conversations, strict=True)
        ]


def test_named_categories_and_novelty_appear_where_verdicts_have_them():
    data = [
        Record(line=i, id=None, conversation=text, label=label, source="s", category=category)
        for i, (text, label, category) in enumerate(
            [("unsafe steal", 1, "crime"), ("unsafe take", 1, "crime"), ("unsafe pills", 1, "drugs"), ("kind", 0, None)] * 5
        )
    ]
    knowing = Knowing(lambda text: "unsafe" in text)
    page = report(collect([("knows", knowing)], data))
    assert "Novelty" in headings(page)
    assert "Categories as named by knows" in headings(page)
    cells = re.search(r'<td class="text">crime</td><td>10</td><td>([\d.]+)<small>.*?</small></td><td>([\d.]+)</td>', page)
    assert cells is not None
    # Half of the category is named; its other half ties with everything else: 5 of 5, then 10 of 20.
    assert (float(cells[1]), float(cells[2])) == (0.5, 0.75)
    plain = report(collect([("plain", guard())], data))
    assert not {"Novelty", "Categories as named by plain"} & set(headings(plain))


def test_the_same_results_give_the_same_page():
    results = collect([("mine", guard())], rows())
    assert report(results) == report(results)


def test_a_user_s_own_plot_settings_neither_change_a_report_nor_are_changed():
    import matplotlib

    results = collect([("mine", guard())], rows())
    plain = report(results)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "#123456", "text.usetex": True}):
        assert report(results) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_threads_may_report_at_once():
    results = collect([("mine", guard())], rows())
    pages = []
    threads = [threading.Thread(target=lambda: pages.append(report(results))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 4
    assert len(set(pages)) == 1


def test_results_of_different_rows_are_not_put_side_by_side():
    one, other = collect([("a", guard())], rows()), collect([("b", guard())], rows())
    with pytest.raises(ConfigurationError, match="different rows"):
        report([*one, *other])
    with pytest.raises(ConfigurationError, match="at least one"):
        report([])


def test_a_long_curve_keeps_its_ends():
    kept = plots._thinned(100_000)
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert len(kept) <= plots._MOST_POINTS


def test_a_page_escapes_everything():
    page = Page("<t>")
    page.heading("<h>")
    page.paragraph("<p>")
    page.table(("<c>",), [("<d>",)])
    page.plots(
        [
            (
                "<f>",
                "<b>",
                plots.curves([plots.Curve("<n>", np.array([0, 1]), np.array([0, 1]), None)] * 2, x="x", y="y", alt="<a>"),
            )
        ]
    )
    text = page.html()
    for letter in "thpcdfbna":
        assert f"&lt;{letter}&gt;" in text
    assert not set(Structure(text).tags) & {"t", "c", "d", "f", "n"}


# -- writing ------------------------------------------------------------------------------------------------------------------


def test_a_report_replaces_the_one_before_as_a_whole(tmp_path, monkeypatch):
    path = save_report(tmp_path / "out.html", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ReportSaveError, match="No space left"):
            save_report(path, "new")
    assert path.read_text() == "old"
    save_report(path, "new \ud800")
    assert path.read_text() == "new ?"
    assert [each.name for each in tmp_path.iterdir()] == ["out.html"]


@pytest.mark.parametrize(
    ("where", "said"), [("", "is a folder"), ("none/out.html", "no such folder"), ("file/out.html", "no such folder")]
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, where, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportSaveError, match=said):
        check_writable(tmp_path / where)


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    def read_only(*_args, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(ReportSaveError, match=r"cannot write the report to .*out\.html \(Read-only file system\)"):
        check_writable(tmp_path / "out.html")


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r'pip install "mlpm-guard\[report\]"'):
        made()


# -- the command --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """Two saved guards of a mock encoder, which is what the command then loads bundles with."""
    data = prompts(60)
    fitted = Guard(MockEncoder()).fit([row["text"] for row in data], [row["label"] for row in data], progress=False)
    monkeypatch.setattr(
        opening,
        "load_guard",
        lambda name, threshold=None: Guard.from_pretrained(name, encoder=MockEncoder(), threshold=threshold),
    )
    return fitted.save_pretrained(tmp_path / "one"), fitted.save_pretrained(tmp_path / "two")


def test_evaluate_writes_a_report_and_prints_what_it_prints_without(tmp_path, bundles):
    source, out = jsonl(tmp_path / "a.jsonl", prompts(30)), tmp_path / "out.html"
    result = run("evaluate", bundles[0], source, "--report", out)
    assert result.exit_code == 0
    assert result.stdout == run("evaluate", bundles[0], source).stdout
    assert str(out) in result.stderr
    page = out.read_text()
    assert SECRET not in page
    assert "a.jsonl" in page
    assert str(tmp_path) not in page


def test_evaluate_compares_guards_each_at_its_own_threshold(tmp_path, bundles):
    source, out = jsonl(tmp_path / "a.jsonl", prompts(30)), tmp_path / "out.html"
    result = run("evaluate", bundles[0], source, "--report", out, "--compare", bundles[1], "--threshold", "0.9", "--json")
    assert [json.loads(line)["threshold"] for line in result.stdout.splitlines()] == [0.9, 0.5]
    assert "Difference from one" in out.read_text()
    run("evaluate", bundles[0], source, "--report", out, "--compare", bundles[0])
    assert "Guard evaluation: one (1), one (2)" in out.read_text()


def test_evaluate_shows_text_when_asked(tmp_path, bundles):
    wrong = jsonl(tmp_path / "a.jsonl", [{**row, "label": 1 - row["label"]} for row in prompts(30)])
    run("evaluate", bundles[0], wrong, "--report", tmp_path / "out.html", "--show-text")
    assert SECRET in (tmp_path / "out.html").read_text()


def test_a_report_that_cannot_be_written_is_found_out_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "load_guard", lambda *_: pytest.fail("loaded"))
    source = jsonl(tmp_path / "a.jsonl", prompts(3))
    assert "no such folder" in error_line(run("evaluate", "default", source, "--report", tmp_path / "none" / "out.html"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # One line, whatever the message holds.
    assert 'pip install "mlpm-guard[report]"' in error_line(
        run("evaluate", "default", source, "--report", tmp_path / "out.html")
    )


@pytest.mark.parametrize(
    "options", [["--compare", "x"], ["--show-text"], ["--pipeline", "--report", "x.html"], ["--pipeline", "--show-text"]]
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options):
    source = jsonl(tmp_path / "a.jsonl", prompts(3))
    assert "--show-text" in error_line(run("evaluate", "default", source, *options))
