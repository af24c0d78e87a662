"""From the path of a configuration file to what the program does with it."""
from vhostrt import log
from vhostrt.config import ConfigError, is_json, json_config, read_file
from vhostrt.options import Options, UsageError, check_together


def load(options: Options) -> list[json_config.Call]:
    """Read options.config: [Global] of an INI file goes into options; return the calls.

    Fails: ConfigError.
    """
    if options.config is None:
        return []
    warnings, calls = load_text(read_file(options.config), options)
    for warning in warnings:
        log.warning(warning)
    return calls


def load_text(text: str, options: Options) -> tuple[list[str], list[json_config.Call]]:
    """Read the text of options.config; return warnings and calls. Fails: ConfigError."""
    path = options.config or ""
    if is_json(text):
        return [], json_config.parse(text, path)
    from vhostrt.config import ini, sections
    warnings, calls = sections.apply(ini.parse(text, path), options, path)
    try:
        check_together(options)
    except UsageError as error:
        raise ConfigError([f"{path}: with this file, {error}"]) from None
    return warnings, calls
