"""Every snippet and command of docs/application.md, as a reader would follow it."""
import re
import sys

import pytest

from tests.test_docs import ROOT, run

PAGE = (ROOT / "docs/application.md").read_text()


def section(title):
    """Return the blocks below a heading, by kind; those of one kind together."""
    text = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```([\w-]+)\n(.*?)^```$", text, re.M | re.S)
    return {kind: [text for each, text in blocks if each == kind] for kind, _ in blocks}


def test_the_page_has_nothing_that_is_not_run():
    found = [section(title) for title in re.findall(r"^## (.*)$", PAGE, re.M)]
    assert sum(len(texts) for blocks in found for texts in blocks.values()) \
        == PAGE.count("\n```") / 2
    assert [set(blocks) for blocks in found] == [
        {"cython", "python-file", "sh", "text"}, set(), {"cython", "text"}, {"python", "text"},
        {"python", "text"}]


def test_twenty_lines(tmp_path):
    blocks = section("Twenty lines")
    code, = blocks["cython"]
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 20
    # Other runs of the tests may have claimed the cores.
    code = code.replace('cores="0x3"', 'cores="0x3", core_locks=False')
    for text in (code, *blocks["python-file"]):
        (tmp_path / text.split("\n", 1)[0].removeprefix("# ")).write_text(text)
    assert run("sh", "-ec", *blocks["sh"], cwd=tmp_path).endswith(*blocks["text"])


def test_light_threads_in_c(tmp_path):
    """Built as the first example is."""
    blocks, first = section("Light threads in C"), section("Twenty lines")
    code = blocks["cython"][0].replace('cores="0x3"', 'cores="0x3", core_locks=False')
    (tmp_path / "count.pyx").write_text(code)
    for text, name in ((first["python-file"][0], "setup.py"), (first["sh"][0], "build.sh")):
        (tmp_path / name).write_text(text.replace("bounce", "count"))
    assert run("sh", "-e", "build.sh", cwd=tmp_path).endswith(*blocks["text"])


@pytest.mark.parametrize("title", ["From Python", "Parts of it"])
def test_python(tmp_path, title):
    blocks = section(title)
    said = run(sys.executable, "-c", *blocks["python"], cwd=tmp_path)
    printed = [line for line in said.splitlines() if not line.startswith("[")]
    assert "\n".join(printed) + "\n" == blocks["text"][0]
