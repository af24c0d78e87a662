"""Configuration files: which of the two kinds one is, and what makes them fail."""


class ConfigError(Exception):
    """A configuration cannot be used; lines holds one sentence for each thing wrong with it."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def read_file(path: str) -> str:
    """Return the text of a configuration file. Fails: ConfigError."""
    try:
        with open(path, "rb") as file:
            return file.read().decode()
    except OSError as error:
        raise ConfigError([f"Could not read config file {path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: this is not text in UTF-8"]) from None


def is_json(text: str) -> bool:
    """Tell JSON from INI by the first character that is not blank."""
    return text.lstrip().startswith("{")
