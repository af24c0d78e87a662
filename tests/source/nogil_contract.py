"""What a declaration that says nogil must say too: how it fails, and nothing of Python."""
import re

from tests.source.cysource import own_lines, says_nogil

# What follows the arguments of a function or of a function pointer, wherever it stands.
SUFFIX = re.compile(r"\)([^()=,]*\bnogil\b[^()=,]*)")
FAILS = re.compile(r"\bnoexcept\b|\bexcept\s*[?*+\-\w]")
OBJECT = re.compile(r"\b(?:object|str|bytes|bytearray|list|dict|tuple|set)\s+\w+\s*[,)=]")


def violations(source: str) -> list[str]:
    """Return "LINE: what is wrong" for each nogil declaration of a .pyx or .pxd at fault."""
    wrong = []
    for line in own_lines(source):
        if not all(map(FAILS.search, SUFFIX.findall(line.text))):
            wrong.append(f"{line.at}: nogil without noexcept or except: {line.text}")
        if says_nogil(line) and OBJECT.search(line.text):
            wrong.append(f"{line.at}: a Python object in a nogil function: {line.text}")
    return wrong
