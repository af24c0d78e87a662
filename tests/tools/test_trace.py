"""The command vhostrt-trace over traces of this process: which one, what it prints, filters."""
import fcntl
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.lib.cy_traces import mark
from tests.lib.traces import tracing
from vhostrt.base.ticks import hz
from vhostrt.event import trace as module
from vhostrt.tools import trace, trace_file
from vhostrt.tracing import lock

ALL = 2**64 - 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that traces are looked for in; empty."""
    monkeypatch.setattr(trace_file, "FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def path(folder):
    """A trace of this process with one of each, in the folder: its name is that of id 5."""
    with tracing(folder, [0, 2], 64, [(9, "disk0.vq0")]) as made:
        module.set_mask("sample", ALL)
        mark("IO_START", 0xa, 8, 0)
        mark("NAP", 1)
        mark("MOMENT", 3, 0, 4, -5 % 2**64, 255, int.from_bytes(b"Malloc0", "little"))
        mark("WAKE", 1, 0, 2)
        mark("IO_START", 0xb, 4, 1)
        mark("IO_DONE", 0xa)
        mark("IO_DONE", 0xc, 0, -5 % 2**64)
    os.rename(made, folder / "vhostrt_trace.5")
    return str(folder / "vhostrt_trace.5")


@pytest.fixture
def run(capsys):
    """A function: run the command; its status, what it printed, and what it said on stderr."""
    def command(*words):
        status = trace.main([str(word) for word in words])
        return status, *capsys.readouterr()
    return command


def test_text(path, run):
    status, out, err = run()
    assert status == 0 and f"process {os.getpid()} has ended" in err
    lines = out.splitlines()
    assert f"process {os.getpid()}, which has ended" in lines[0]
    assert lines[1] == "# traced now: sample" and lines[2] == "# core ctrl: 7 entries"
    rows = [line.split() for line in lines if line[0] != "#"]
    assert [row[3] for row in rows] == ["IO_START", "NAP", "MOMENT", "WAKE", "IO_START", "IO_DONE",
                                        "IO_DONE"]
    assert rows[0][1:] == ["ctrl", "control", "IO_START", "io=0xa", "blocks=8", "type=READ"]
    assert rows[2][4:] == ["count=4", "rc=-5", "at=0xff", "name=Malloc0"]
    assert rows[3][4:6] == ["nap=0x1", "events=2"]
    times = [float(row[0]) for row in rows]
    assert times == sorted(times)
    # What took how long is told where it ends: to the nearest nanosecond the difference.
    took = float(rows[5][-1].removeprefix("took=").removesuffix("us"))
    assert abs(took - (times[5] - times[0])) < 0.002
    assert rows[6][4:] == ["io=0xc", "rc=-5"]
    assert [line for line in lines if line.startswith("# not over")] == [
        f"# not over: {times[4]:.3f}  ctrl  control             IO_START                io=0xb "
        "blocks=4 type=WRITE"]


def test_json(path, run):
    status, out, _ = run("--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(rows) == 7
    assert rows[0] == {"us": rows[0]["us"], "tsc": rows[0]["tsc"], "lcore": None,
                       "owner": "control", "group": "sample", "point": "IO_START", "object": "0xa",
                       "kind": "io", "args": {"blocks": 8, "type": "READ"}}
    assert "object" not in rows[2] and rows[2]["args"]["name"] == "Malloc0"
    assert [("took_us" in row) for row in rows] == [False] * 3 + [True, False, True, False]


def of_phase(events, phase):
    return [event for event in events if event["ph"] == phase]


def test_chrome(path, run, tmp_path):
    status, out, err = run("--chrome", tmp_path / "out.json")
    assert (status, out) == (0, "") and "7 entries written to" in err
    with open(tmp_path / "out.json") as file:
        document = json.load(file)
    events = document["traceEvents"]
    pid = os.getpid()
    assert all(event["pid"] == pid and isinstance(event["tid"], int) for event in events)
    names = {event["tid"]: event["args"]["name"] for event in of_phase(events, "M")
             if event["name"] == "thread_name"}
    assert sorted(names.values()) == ["control", "core 0", "core 2"] and 0 not in names
    assert {event["tid"] for event in events if event["ph"] != "M"} <= set(names)
    begun = {event["id"]: event for event in of_phase(events, "b")}
    ended = {event["id"]: event for event in of_phase(events, "e")}
    assert begun.keys() == ended.keys() and len(begun) == 2
    for number, event in begun.items():
        assert (event["cat"], event["name"]) == (ended[number]["cat"], ended[number]["name"])
        assert event["ts"] <= ended[number]["ts"]
    first, second = begun
    assert begun[first]["name"] == "io READ" and begun[first]["args"]["object"] == "0xa"
    assert ended[first]["args"] == {"owner": "control", "rc": 0}
    assert ended[second]["args"] == {"unfinished": True}
    bar, = of_phase(events, "X")
    assert bar["name"] == "nap" and bar["dur"] > 0 and bar["args"]["events"] == 2
    moment, lost = of_phase(events, "i")
    assert (moment["name"], moment["s"]) == ("MOMENT", "t")
    assert lost["name"] == "IO_DONE" and lost["args"]["began"] == "before the trace"
    assert [event["args"]["count"] for event in of_phase(events, "C")] == [1, 2, 1, 0]


def test_chrome_when_an_end_was_lost(folder, run):
    with tracing(folder, [0]) as made:
        module.set_mask("sample", ALL)
        for _ in range(2):
            mark("IO_START", 1)
            mark("NAP")
        status, out, _ = run("-f", made, "--chrome", "-")
    events = json.loads(out)["traceEvents"]
    assert "".join(event["ph"] for event in events if event["ph"] not in "MC") == "bebX" + "eX"
    assert [event["args"]["count"] for event in of_phase(events, "C")] == [1, 0, 1, 0]
    assert all(event["args"].get("unfinished") for event in events if event["ph"] in "eX")


def picture(text):
    """Return the titles of a picture's bars, and its other texts."""
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    bars = [bar.findtext(f"{name}title") for bar in root.iter(f"{name}rect")]
    return ([title.split("\n") for title in bars if title],
            [one.text for one in root.iter(f"{name}text")])


def test_svg(path, run):
    status, out, _ = run("--svg", "-")
    bars, texts = picture(out)
    assert status == 0
    read, write, nap = sorted(bars)
    assert read[0].startswith("io READ, ") and read[1:] == [
        "control", "blocks=8", "type=READ", "rc=0"]
    assert write[0].startswith("io WRITE, ") and write[0].endswith(", not over")
    assert nap[0].startswith("nap, ") and nap[2:] == ["events=2"]
    assert {"control: io", "control: nap", "io READ", "io WRITE", "0 us"} <= set(texts)


def test_a_span_is_one_entry(folder, run):
    with tracing(folder) as made:
        module.set_mask("sample", ALL)
        mark("MOMENT")
        mark("PASS", 1, 0, hz() // 1000, 5)
        mark("PASS", 1, 0, ALL, 6)
        text = run("-f", made)[1].splitlines()
        row = json.loads(run("-f", made, "--json", "--tpoint", "PASS")[1].splitlines()[0])
        events = json.loads(run("-f", made, "--chrome", "-")[1])["traceEvents"]
        bars, _ = picture(run("-f", made, "--svg", "-")[1])
    assert text[5].endswith("pass=0x1 polls=5 took=1000.000us") and "not over" not in text[-1]
    assert (row["took_us"], row["args"]) == (1000.0, {"polls": 5})
    bar = of_phase(events, "X")[0]
    assert bar["dur"] == 1000.0 and abs(bar["ts"] + 1000 - row["us"]) < 0.002
    assert bar["name"] == "control"
    assert ["control, 1000.000 us", "control", "polls=5"] in bars


def test_svg_of_more_than_fits(folder, run):
    """Rows are used again when what was in them is over; what finds no row is counted."""
    with tracing(folder, entries=256) as made:
        module.set_mask("sample", ALL)
        for _ in range(2):
            for n in range(30):
                mark("IO_START", n)
            for n in range(30):
                mark("IO_DONE", n)
        bars, texts = picture(run("-f", made, "--svg", "-")[1])
    assert len(bars) == 48 and "and 12 more at the same times" in texts


def test_svg_of_a_hostile_name(folder, run):
    with tracing(folder, owners=[(1, "</title><script>&")]) as made:
        module.set_mask("sample", ALL)
        mark("IO_START")
        with trace_file.open_trace(made) as found:
            at = found.rings[0].at + 4096
        with open(made, "r+b") as file:
            file.seek(at + 24)          # the owner of the first entry
            file.write(b"\1\0\0\0")
        bars, _ = picture(run("-f", made, "--svg", "-")[1])
    assert bars[0][1] == "</title><script>&"


def test_times_that_cannot_be(folder, run):
    """A clock of 1 Hz, and entries from its first tick to its last."""
    with tracing(folder) as made:
        module.set_mask("sample", ALL)
        mark("IO_START")
        mark("IO_DONE")
        with trace_file.open_trace(made) as found:
            at = found.rings[-1].at + 4096
        with open(made, "r+b") as file:
            file.seek(32)               # tsc_hz
            file.write((1).to_bytes(8, "little"))
            for offset, tsc in ((8, 0), (64 + 8, 2**64 - 1)):
                file.seek(at + offset)
                file.write(tsc.to_bytes(8, "little"))
        for words in (["--svg", "-"], ["--chrome", "-"], ["--json"], []):
            assert run("-f", made, *words)[1]


def test_a_part_of_the_time(path, run):
    times = [json.loads(line)["us"] for line in run("--json")[1].splitlines()]
    for words, kept in ((["--from", times[2] - 0.0005], 5), (["--to", times[1] + 0.0005], 2),
                        (["--from", times[1] - 0.0005, "--to", times[4] + 0.0005], 4),
                        (["--from", times[-1] + 1], 0)):
        assert run("--json", *words)[1].count("\n") == kept


def test_a_trace_without_entries(folder, run):
    with tracing(folder) as made:
        assert run("-f", made)[1].count("\n") == 3
        assert run("-f", made, "--json")[:2] == (0, "")
        document = json.loads(run("-f", made, "--chrome", "-")[1])
        assert picture(run("-f", made, "--svg", "-")[1]) == ([], [])
    assert {event["ph"] for event in document["traceEvents"]} == {"M"}


@pytest.mark.parametrize("words, points", [
    (["--group", "sample"], 7), (["--group", "SAMPLE,test"], 7), (["--group", "bdev"], 0),
    (["--tpoint", "io_start,NAP"], 3), (["--lcore", "ctrl"], 7), (["--lcore", "0,2"], 0),
    (["--lcore", "2,ctrl"], 7), (["--tpoint", "IO_DONE", "--group", "sample"], 2),
])
def test_filters(path, run, words, points):
    import tests.event.cy_trace  # noqa: F401  # registers the group "test"
    import vhostrt.bdev.core  # noqa: F401
    status, out, _ = run("-f", path, "--json", *words)
    assert (status, out.count("\n")) == (0, points)
    # What begins outside the filter still tells how long it took.
    assert ("took_us" in out) == (points > 0 and words != ["--tpoint", "io_start,NAP"])


@pytest.mark.parametrize("words, sentence", [
    (["--group", "none"], "the trace has no group 'none'; it has bdev"),
    (["--tpoint", "NAP,NONE"], "the trace has no point 'NONE'"),
    (["--lcore", "1,7"], "no core of the list is in the trace, which has 0, 2, ctrl"),
    (["-p", "1"], "no trace of process 1 in"), (["-i", "6"], "vhostrt_trace.6"),
    (["-f", "/nonexistent"], "'/nonexistent' cannot be opened: No such file"),
    (["--chrome", "/nonexistent/x"], "'/nonexistent/x' cannot be written: No such file"),
    (["--chrome", "/"], "'/' cannot be written: Is a directory"),
    (["--chrome", "/dev/full"], "the output cannot be written: No space left"),
])
def test_what_cannot_be_shown(path, run, words, sentence):
    status, _, err = run(*words)
    assert status == 1 and sentence in err
    assert [line.partition(" ")[0] for line in err.splitlines()][-1] == "vhostrt-trace:"


@pytest.mark.parametrize("words, sentence", [
    (["-p", "x"], "-p/--pid: 'x' is not a whole number"), (["-p", "-1"], "-p/--pid"),
    (["-p"], "-p/--pid"), (["--lcore", "3-1"], "range '3-1'"), (["--lcore", ""], "--lcore"),
    (["--group", ""], "--group"), (["--group", "a,,b"], "''"), (["--tpoint", "a b"], "'a b'"),
    (["-f", ""], "path is empty"), (["--nope"], "--nope"), (["word"], "word"),
    (["--from", "x"], "'x' is not a time"), (["--to", "-1"], "--to"), (["--to", "inf"], "'inf'"),
    (["-p", "1", "-i", "2"], "not allowed with"), (["--from", "nan"], "'nan' is not a time"),
    (["--json", "--chrome", "x"], "not allowed with"),
])
def test_bad_arguments(run, capsys, words, sentence):
    with pytest.raises(SystemExit) as end:
        trace.main(words)
    err = capsys.readouterr().err
    assert end.value.code == 2 and sentence in err
    assert err.startswith("vhostrt-trace: ") and err.endswith("Try 'vhostrt-trace --help'.\n")


# Which trace.

@pytest.fixture
def several(folder, path):
    """A function: which of three copies of the trace runs; the third began last."""
    held = []

    def make(*running):
        for number, pid in enumerate((101, 102, 103)):
            name = folder / f"vhostrt_trace.pid{pid}"
            with open(path, "rb") as file:
                data = bytearray(file.read())
            data[16:20] = pid.to_bytes(4, "little")
            data[48:56] = (10**18 + number).to_bytes(8, "little")
            name.write_bytes(data)
            if pid in running:
                held.append(os.open(name, os.O_RDWR))
                assert lock(held[-1])
        os.unlink(path)
        (folder / "vhostrt_trace.pid104").write_text("no trace")
        (folder / "another").write_text("")
    yield make
    for fd in held:
        os.close(fd)


def shown(out):
    return int(out.split("process ")[1].split(",")[0])


def test_the_one_that_runs_is_shown(several, run):
    several(102)
    status, out, err = run()
    assert (status, shown(out), err) == (0, 102, "") and "which runs" in out


def test_the_one_that_began_last_is_shown(several, run):
    several()
    status, out, err = run()
    assert (status, shown(out)) == (0, 103) and "process 103 has ended" in err


def test_one_of_several_has_to_be_chosen(several, run):
    several(101, 103)
    status, out, err = run()
    assert (status, out) == (1, "")
    assert "choose one with -p: 101 (" in err and "103 (" in err and "102" not in err
    assert shown(run("-p", 103)[1]) == 103
    assert shown(run("-p", 102)[1]) == 102


def test_no_trace_at_all(folder, run):
    status, out, err = run()
    assert (status, out) == (1, "") and f"there is no trace in {folder}" in err and "-e" in err


def test_no_folder_at_all(folder, run, monkeypatch):
    monkeypatch.setattr(trace_file, "FOLDER", str(folder / "none"))
    assert "there is no trace in" in run()[2]


def test_an_id_names_the_file(path, run):
    assert shown(run("-i", 5)[1]) == os.getpid()


def test_a_reader_does_not_hold_the_writer_up(path, run):
    """It asks for the lock and never takes it: the next process can replace the file."""
    with open(path, "r+b") as file, trace_file.open_trace(path) as found:
        assert not found.runs()
        assert lock(file.fileno()) and found.runs()
        with open(path, "r+b") as other, pytest.raises(OSError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# As a process of its own.

def words_of(*words):
    return [sys.executable, "-m", "vhostrt.tools.trace", *words]


def test_who_reads_may_stop_early(path, folder):
    with tracing(folder, entries=32768) as made:
        module.set_mask("sample", ALL)
        for i in range(20_000):
            mark("MOMENT", i)
        with subprocess.Popen(words_of("-f", made), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


def test_output_that_cannot_be_written(path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(words_of("-f", path), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ("vhostrt-trace: the output cannot be written: No space left on "
                           "device\n")
