"""The system's log, where there is one: a datagram for each line, never waited for.

Threads: the control thread.
Fails:   never; a line that the system does not take is lost.
"""
import os
import socket
import stat

from vhostrt.log import SEVERITIES, stderr_is_journal

PATH = "/dev/log"
LOCAL7 = 23 << 3


class Syslog:
    """Lines of one program, in the name and with the process id that they carry."""

    def __init__(self, name: str, path: str = PATH) -> None:
        self.name, self.path = name, path
        self.sock: socket.socket | None = None

    def send(self, level: int, text: str) -> None:
        """Send one line."""
        line = f"<{LOCAL7 | SEVERITIES[level]}>{self.name}[{os.getpid()}]: {text}"
        for _ in range(2):              # a daemon that was restarted has a new socket
            try:
                if self.sock is None:
                    self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self.sock.setblocking(False)
                    self.sock.connect(self.path)
                self.sock.send(line.encode("utf-8", "surrogateescape"))
                return
            except BlockingIOError:
                return
            except OSError:
                self.close()

    def close(self) -> None:
        """Let go of the socket."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def find(name: str, path: str = PATH) -> Syslog | None:
    """Return the system's log; None where there is none, or where stderr is the journal, which has
    the lines then."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return None
    except OSError:
        return None
    return None if stderr_is_journal() else Syslog(name, path)
