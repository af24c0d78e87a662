"""From the path of a configuration file to what the program does with it."""
from vhostrt import log
from vhostrt.config import ConfigError, ini, is_json, json_config, read_file
from vhostrt.options import Options, UsageError, check_together


def load(options: Options) -> list[json_config.Call]:
    """Read options.config: [Global] of an INI file goes into options; return a JSON file's calls.

    Fails: ConfigError.
    """
    if options.config is None:
        return []
    text = read_file(options.config)
    if is_json(text):
        return json_config.parse(text, options.config)
    for warning in ini.apply(ini.parse(text, options.config), options, options.config):
        log.warning(warning)
    try:
        check_together(options)
    except UsageError as error:
        raise ConfigError([f"{options.config}: with this file, {error}"]) from None
    return []
