"""What a declaration that says nogil must say too: how it fails, and nothing of Python."""
import re

from tests.source.cysource import own_lines, says_nogil

FAILS = re.compile(r"\bnoexcept\b|\bexcept\s*[?*+\-\w]")
OBJECT = re.compile(r"\b(?:object|str|bytes|bytearray|list|dict|tuple|set)\s+\w+\s*[,)=]")


def violations(source: str) -> list[str]:
    """Return "LINE: what is wrong" for each nogil declaration of a .pyx or .pxd at fault."""
    wrong = []
    for line in own_lines(source):
        if not says_nogil(line):
            continue
        if not FAILS.search(line.text):
            wrong.append(f"{line.at}: nogil without noexcept or except: {line.text}")
        if OBJECT.search(line.text):
            wrong.append(f"{line.at}: a Python object in a nogil function: {line.text}")
    return wrong
