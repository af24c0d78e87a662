"""Processes with an environment each, told what to do expression by expression."""
import ast
import contextlib
import os
import signal
import subprocess
import sys

LOOP = """if 1:
    import sys
    from tests.lib import cy_shared
    from vhostrt.env import memory, tailq, zone
    from vhostrt.env.options import EnvOptions
    names = dict(globals())
    print("'ready'", flush=True)
    for line in sys.stdin:
        try:
            value = eval(line, names)
        except OSError as error:
            value = f"OSError: {error}"
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
        print(repr(value) if isinstance(value, (int, str, bytes, list, dict, bool, tuple))
              else "None", flush=True)
"""


class Process:
    """One process. Call it with an expression; its value comes back, an exception as text."""

    def __init__(self, **environment):
        self.run = subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, text=True,
                                    env={**os.environ, **environment})
        self.pid = self.run.pid
        assert self.answer() == "ready"

    def answer(self):
        line = self.run.stdout.readline()
        assert line, f"the process has ended: {self.run.wait()}"
        return ast.literal_eval(line)

    def send(self, expression):
        self.run.stdin.write(expression + "\n")
        self.run.stdin.flush()

    def __call__(self, expression):
        self.send(expression)
        return self.answer()

    def init(self, **options):
        """Start its memory; the sentence, or why not."""
        words = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return self(f"memory.init(EnvOptions({words}))")

    def kill(self):
        """kill -9."""
        self.run.send_signal(signal.SIGKILL)
        self.run.wait()

    def end(self):
        """Let it end by itself; its exit status."""
        with contextlib.suppress(OSError):
            self.run.stdin.close()
        return self.run.wait(30)


@contextlib.contextmanager
def processes(count, **environment):
    """So many processes, none of which is left."""
    started = []
    try:
        for _ in range(count):
            started.append(Process(**environment))
        yield started
    finally:
        for one in started:
            one.kill()
            one.run.stdin.close()
            one.run.stdout.close()
