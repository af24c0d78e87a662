"""Completion of vhostrt-rpc in real shells: bash and zsh on a terminal, with the Tab key."""
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests.lib.target import Target

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "READY> "
SHELLS = {
    "bash": (["--norc", "--noprofile"], [f"PS1='{PROMPT}'", "bind 'set show-all-if-ambiguous on'",
                                         "bind 'set enable-bracketed-paste off'",
                                         "bind 'set completion-query-items 0'",
                                         "bind 'set page-completions off'"]),
    "zsh": (["-f"], [f"PS1='{PROMPT}'", "autoload -U compinit; compinit -u -D",
                     "setopt no_list_ambiguous", "LISTMAX=0"]),
}


@pytest.fixture(scope="module")
def target():
    with Target(disks=("malloc:8M,name=ram0", "malloc:8M,name=ram1")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the command vhostrt-rpc, for PATH."""
    place = tmp_path_factory.mktemp("bin")
    command = place / "vhostrt-rpc"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom vhostrt.tools.rpc import main\n"
                       "sys.exit(main())\n")
    command.chmod(0o755)
    return place


class Shell:
    """An interactive shell in which completion has been set up as its user is told to."""

    def __init__(self, name, folder):
        words, commands = SHELLS[name]
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb",
                       "PYTHONPATH": str(ROOT), "HOME": str(folder), "HISTFILE": ""}
        self.terminal = pexpect.spawn(shutil.which(name) or name, words, env=environment,
                                      encoding="utf-8", timeout=30, dimensions=(60, 200),
                                      cwd=str(folder))
        for command in (*commands, 'eval "$(vhostrt-rpc --completion)"', "echo set $((1 + 1))up"):
            self.terminal.sendline(command)
        self.terminal.expect("set 2up")
        self.terminal.expect(re.escape(PROMPT))

    def tab(self, text, *expected):
        """Type a text and Tab; return what the shell shows until all that is expected is there."""
        shown, end = "", time.monotonic() + 30
        self.terminal.send(text + "\t")
        try:
            while not all(each in shown.replace(text, "") for each in expected):
                assert time.monotonic() < end, shown
                try:
                    shown += self.terminal.read_nonblocking(4096, timeout=1)
                except pexpect.TIMEOUT:
                    pass
        finally:
            self.terminal.sendcontrol("u")
            self.terminal.sendline("echo dr''op")
            self.terminal.expect("drop\r")
            self.terminal.expect(re.escape(PROMPT))
        return shown

    def close(self):
        self.terminal.close(force=True)


@pytest.fixture(scope="module", params=SHELLS)
def shell(request, folder):
    running = Shell(request.param, folder)
    yield running
    running.close()


def test_a_method(shell, target):
    ours = f"vhostrt-rpc -s {target.rpc_path} "
    shell.tab(ours + "bdev_malloc_c", "reate ")
    shown = shell.tab(ours + "notify_", "notify_wait_notifications", "notify_get_types")
    assert "bdev_get_bdevs" not in shown


def test_an_option(shell, target):
    ours = f"vhostrt-rpc -s {target.rpc_path} "
    shell.tab(ours + "bdev_malloc_create --num", "-blocks ")
    shown = shell.tab(ours + "bdev_null_create --preferred-u", "--preferred-unmap-granularity",
                      "--preferred-unmap-alignment")
    assert "--num-blocks" not in shown
    shell.tab("vhostrt-rpc --compl", "etion ")


def test_names_of_what_the_target_has(shell, target):
    ours = f"vhostrt-rpc -s {target.rpc_path} "
    shell.tab(ours + "bdev_malloc_delete r", "ram0", "ram1")
    shell.tab(ours + "vhost_delete_controller --ctrlr disk0", ".sock ")
    shell.tab(ours + "log_set_level ", "WARNING", "DEBUG")


def test_without_a_target(shell, folder):
    ours = f"vhostrt-rpc -s {folder}/none "
    shell.tab(ours + "bdev_malloc_c", "reate ")
    shell.tab(ours + "watch --ty", "pe ")
