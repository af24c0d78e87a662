"""The programs that the guest tests take from the machine, and the error they fail with."""
import os
import shutil
import subprocess


class GuestError(Exception):
    """A guest could not be prepared or run, or did not do what it was told; the text says why."""


def need(program: str, package: str) -> str:
    """Return the path of a program; where there is none, say which package brings it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"      # mke2fs is not on a user's PATH
    found = shutil.which(program, path=path)
    if found is None:
        raise GuestError(f"the guest tests need the program {program}: "
                         f"install it with 'apt-get install {package}'")
    return found


def run(*command: str, cwd: str | None = None) -> bytes:
    """Run a command to its end and return what it printed; a bad exit status is a GuestError."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=False,
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        why = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise GuestError(f"'{' '.join(command)}' ended with status {done.returncode}: {why}")
    return done.stdout
