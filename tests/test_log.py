"""Log lines, from the viewpoint of who scrapes stderr."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt import log

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\] "
                  r"(\S+):( *\d+):(\w+): \*(\w+)\*: (.*)\n")


@pytest.fixture(autouse=True)
def settings_again():
    yield
    log.set_up(log.INFO)
    log.settings.timestamps = True


def test_a_line_says_when_where_and_what(capsys):
    log.notice("Total cores available: 1")
    line = LINE.fullmatch(capsys.readouterr().err)
    assert line[1] == "test_log.py" and line[3] == "test_a_line_says_when_where_and_what"
    assert len(line[2]) == 4 and int(line[2]) > 20
    assert line.group(4, 5) == ("NOTICE", "Total cores available: 1")


@pytest.mark.parametrize("level, shown", [
    (log.ERROR, "E"), (log.WARNING, "EW"), (log.NOTICE, "EWN"), (log.INFO, "EWNI"),
    (log.DEBUG, "EWNID"),
])
def test_the_print_level_cuts(capsys, level, shown):
    log.set_up(level, ("rpc",))
    log.error("E"), log.warning("W"), log.notice("N"), log.info("rpc", "I"), log.debug("rpc", "D")
    assert "".join(line[-1] for line in capsys.readouterr().err.splitlines()) == shown


def test_info_and_debug_need_the_flag_of_their_component(capsys):
    log.set_up(log.DEBUG, ("rpc",))
    log.info("vhost", "no"), log.debug("vhost", "no")
    assert capsys.readouterr().err == ""
    log.set_up(log.DEBUG, ("all",))
    log.info("vhost", "yes"), log.debug("vhost", "yes")
    assert capsys.readouterr().err.count("yes") == 2


def test_unknown_flags_are_refused():
    with pytest.raises(ValueError, match="unknown log flag nope"):
        log.set_up(log.INFO, ("rpc", "nope"))


def test_records_of_compiled_code(capsys):
    log.settings.timestamps = False
    log.record(log.WARNING, "reactor.pyx", 7, "reactor_run", "text")
    log.record(log.DEBUG, "reactor.pyx", 7, "reactor_run", "unseen")
    assert capsys.readouterr().err == "reactor.pyx:   7:reactor_run: *WARNING*: text\n"


def test_text_of_a_client_cannot_make_lines_of_its_own(capsys):
    log.error("name 'a\nb\x1b[2J\u2028' \u00e9")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.endswith("name 'a\\nb\\x1b[2J\\u2028' \u00e9\n")


def test_a_closed_stderr_is_no_error():
    code = "import sys; from vhostrt import log; sys.stderr.close(); log.error('x'); print('on')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True,
                          capture_output=True, text=True)
    assert done.stdout == "on\n"


def test_a_reader_that_went_away_is_no_error():
    code = ("import os, sys; from vhostrt import log; r, w = os.pipe(); os.close(r);"
            "os.dup2(w, 2); log.error('x'); log.error('y'); os._exit(0)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)


# JSON lines

@pytest.fixture
def json_lines():
    log.settings.format = "json"
    yield
    log.settings.format = "text"


def test_a_json_line_has_the_fields_of_a_text_line(capsys, json_lines):
    log.set_up(log.DEBUG, ("rpc",))
    log.warning('a "quoted"\nline \udc80 \u00e9')
    log.debug("rpc", "step")
    log.record(log.ERROR, "reactor.pyx", 7, "reactor_run", "text")
    lines = capsys.readouterr().err.splitlines()
    found = [json.loads(line) for line in lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", each.pop("time"))
               for each in found)
    first, second, third = found
    assert first.pop("line") < second.pop("line")
    assert first == {"level": "WARNING", "file": "test_log.py",
                     "function": "test_a_json_line_has_the_fields_of_a_text_line",
                     "message": 'a "quoted"\\nline \\udc80 \u00e9'}
    assert second.pop("flag") == "rpc" and second["message"] == "step"
    assert third == {"level": "ERROR", "file": "reactor.pyx", "line": 7,
                     "function": "reactor_run", "message": "text"}


def test_json_lines_without_the_time(capsys, json_lines):
    log.settings.timestamps = False
    log.error("x")
    assert list(json.loads(capsys.readouterr().err)) == ["level", "file", "line", "function",
                                                         "message"]


@pytest.mark.parametrize("form", log.FORMATS)
def test_the_journal_gets_priorities_and_its_own_time(form):
    """A process whose stderr is what JOURNAL_STREAM names, and one where it is not."""
    code = (f"import os; from vhostrt import log; log.set_up(log.DEBUG, ('all',));"
            f"there = os.fstat(2); name = f'{{there.st_dev}}:{{there.st_ino}}';"
            f"os.environ['JOURNAL_STREAM'] = name; log.set_form({form!r});"
            "log.error('e'), log.warning('w'), log.notice('n'), log.info('rpc', 'i'),"
            "log.debug('rpc', 'd');"
            f"os.environ['JOURNAL_STREAM'] = name + '0'; log.set_form({form!r}); log.error('e')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True,
                          capture_output=True, text=True)
    *lines, last = done.stderr.splitlines()
    assert [line[:3] for line in lines] == ["<3>", "<4>", "<5>", "<6>", "<7>"]
    if form == "json":
        assert all("time" not in json.loads(line[3:]) for line in lines)
        assert "time" in json.loads(last)
    else:
        assert all(line.startswith("<string>:   1:<module>: *", 3) for line in lines)
        assert last.startswith("[2")
