"""A Python of its own, for what would change this process."""
import os
import subprocess
import sys

import pytest


@pytest.fixture
def python(request):
    """Run a program text with arguments in another interpreter; return what it printed."""
    def run(program, *arguments) -> str:
        root = str(request.config.rootpath)
        done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=root,
                              env={**os.environ, "PYTHONPATH": root}, capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run
