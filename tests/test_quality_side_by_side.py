"""The table of answers side by side: what it shows, and that it shows it as text."""

import json
from html.parser import HTMLParser

import pytest

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.quality import side_by_side
from lm_eval_exl2.tasks.quality.side_by_side import as_html, as_markdown, main, read_runs

ROWS = [
    {"id": "sum", "kind": "k", "prompt": "1 + 1 =", "max_sentences": 1, "max_words": 3,
     "answers": ["2"]},
    {"id": "say", "kind": "k", "prompt": "Say | `so`.", "max_sentences": 1, "max_words": 3},
]  # fmt: skip


def save(path, *answers):
    lines = [
        json.dumps({"doc": row, "resps": [[answer]]})
        for row, answer in zip(ROWS, answers, strict=False)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def files(tmp_path):
    first = save(tmp_path / "a.jsonl", "2", "It is so.")
    second = save(tmp_path / "b.jsonl", "3 Answer: 3 Answer: 3", " ")
    return {"fp16": first, "2.5bpw": second}


def test_markdown_shows_counts_answers_and_faults(files):
    lines = as_markdown(read_runs(files)).splitlines()
    assert "| answers | fp16 | 2.5bpw |" in lines
    assert "| clean | 2 of 2 | 0 of 2 |" in lines
    assert "| exact | 1 of 1 | 0 of 1 |" in lines
    assert "| prompt&#95;leak | 0 of 2 | 1 of 2 |" in lines
    (line,) = (line for line in lines if line.startswith("| sum"))
    prompt, good, bad = line.strip("|").split("|")
    assert prompt.strip() == "sum<br><br>1 &#43; 1 =<br><br>Right&#58; 2"
    assert good.strip() == "2"
    assert bad.strip() == (
        "3 Answer&#58; 3 Answer&#58; 3<br>**prompt&#95;leak&#58; Answer&#58; (2 times)**"
        "<br>**limits&#58; 5 words**<br>**wrong**"
    )


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.cells, self.is_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")
            self.is_cell = True

    def handle_endtag(self, tag):
        self.is_cell = self.is_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.is_cell:
            self.cells[-1] += data


def test_html_shows_the_same(files):
    cells = Page(as_html(read_runs(files))).cells
    start = cells.index("sum\n\n1 + 1 =\n\nRight: 2")
    assert cells[start + 1] == "2"
    assert cells[start + 2] == (
        "3 Answer: 3 Answer: 3\nprompt_leak: Answer: (2 times)\nlimits: 5 words\nwrong"
    )
    assert cells[start + 5] == "\nempty: no words\nlimits: no words"


ATTACKS = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "\"><svg/onload='alert(1)'>",
    "&lt;script&gt;",
    "]]><!-- -->",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_wrote_becomes_no_markup(tmp_path, attack):
    harmless = read_runs({"x": save(tmp_path / "a.jsonl", "2", "plain")})
    hostile = read_runs({attack: save(tmp_path / "b.jsonl", "2", attack)})
    expected, found = Page(as_html(harmless)), Page(as_html(hostile))
    # As the label over two tables, and as an answer, whole.
    assert sum(cell.startswith(attack) for cell in found.cells) == 3
    assert set(found.elements) <= {*expected.elements, "span"}
    assert set(found.attributes) <= {*expected.attributes, ("class", "fault")}
    assert "<" not in as_markdown(hostile).replace("<br>", "")


@pytest.mark.parametrize(
    "text",
    [
        "a | b\n| c |\r\nd",
        "`code` ``` **bold** _it_ ~~no~~ # head",
        "![x](http://a.b/c) [y]: z <http://a.b> www.a.b me@a.b $x$ [^1] \\| \\",
    ],
)
def test_what_a_model_wrote_becomes_no_markdown(tmp_path, text):
    table = as_markdown(read_runs({"x": save(tmp_path / "a.jsonl", "2", text)}))
    (line,) = (line for line in table.splitlines() if line.startswith("| say"))
    cell = line.strip("| ").split(" | ")
    assert len(cell) == 2
    answer = cell[1].partition("<br>**")[0].replace("<br>", "")
    assert not set(answer.replace("&#", "").replace("&nbsp;", "")) & set("|`*_~#[]<>!\\@$:/")
    assert "www." not in answer


def test_signs_that_cannot_be_seen_are_spelled_out(tmp_path):
    runs = read_runs({"x": save(tmp_path / "a.jsonl", "2", "a\x1b[31m\u202eb\u200d\ud800\x00")})
    for table in (as_html(runs), as_markdown(runs).replace("&#92;", "\\")):
        assert "a\\u001b" in table
        assert "\\u202eb\\u200d\\ud800\\u0000" in table
        table.encode()


def test_a_sign_that_looks_like_a_line_break_ends_no_line_of_a_samples_file(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"doc": ROWS[1], "resps": [["a\u2028b\x85c"]]}
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_runs({"x": path})["x"]["say"].answer == "a\u2028b\x85c"


def test_indentation_of_code_is_kept(tmp_path):
    runs = read_runs({"x": save(tmp_path / "a.jsonl", "2", "for n in m:\n    n += 1")})
    assert "for n in m&#58;<br>&nbsp;&nbsp;&nbsp;&nbsp;n &#43;= 1" in as_markdown(runs)
    assert "for n in m:\n    n += 1" in as_html(runs)


def test_a_prompt_that_one_run_was_not_asked_is_marked(tmp_path):
    runs = {"a": save(tmp_path / "a.jsonl", "2"), "b": save(tmp_path / "b.jsonl", "2", "So.")}
    (line,) = (
        line for line in as_markdown(read_runs(runs)).splitlines() if line.startswith("| say")
    )
    assert line.endswith("| <br>**not asked** | So. |")


def test_runs_of_different_prompts_are_refused(tmp_path):
    other = save(tmp_path / "b.jsonl", "2", "So.")
    other.write_text(other.read_text().replace("1 + 1", "1 + 2"))
    with pytest.raises(OptionError, match="asks another prompt 'sum'"):
        read_runs({"a": save(tmp_path / "a.jsonl", "2"), "b": other})


@pytest.mark.parametrize("suffix", ["md", "html", "HTML"])
def test_the_command_writes_a_file(files, tmp_path, suffix):
    target = tmp_path / f"table.{suffix}"
    words = [f"{label}={path}" for label, path in files.items()]
    assert main([*words, "--output", str(target)]) == 0
    expected = (as_markdown if suffix == "md" else as_html)(read_runs(files))
    assert target.read_text("utf-8") == expected
    assert sorted(tmp_path.iterdir()) == sorted([*files.values(), target])


@pytest.mark.parametrize(
    ("words", "output", "message"),
    [
        (["fp16={a}"], "table.txt", "expected a name that ends in .md or .html"),
        (["fp16"], "t.md", "expected LABEL=SAMPLES"),
        (["={a}"], "t.md", "expected LABEL=SAMPLES"),
        (["fp16={a}", "fp16={a}"], "t.md", "given twice"),
        (["fp16=none.jsonl"], "t.md", "cannot read samples file 'none.jsonl'"),
        (["fp16={a}"], "none/t.md", "cannot write"),
        (["fp16={a}"], "a.jsonl/t.md", "cannot write"),
        (["fp16={a}"], "folder.md", "cannot write"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(files, tmp_path, capsys, words, output, message):
    (tmp_path / "folder.md").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(a=files["fp16"]) for word in words]
    assert main([*words, "--output", str(tmp_path / output)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("side_by_side: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_written_whole_or_not_at_all(files, tmp_path, monkeypatch, capsys):
    target = tmp_path / "table.md"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(side_by_side.Path, "replace", fail)
    assert main([f"fp16={files['fp16']}", "--output", str(target)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([*files.values(), target])
