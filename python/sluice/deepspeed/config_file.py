"""The text of a configuration: a JSON or HJSON file, or JSON in URL-safe base64, as DeepSpeed takes them. Whatever is wrong
with it is a ConfigError that names the file and the place; nothing is read without end."""

import base64
import json
import os
import re
import stat

from ..native.checked import shown
from ..native.errors import ConfigError

_BYTES_MAX = 16 << 20
_NAME_MAX = 400  # characters
_COMMENTS = re.compile(r"#[^\n]*|//[^\n]*|/\*.*?\*/", re.DOTALL)


def read(config):
    """(what `config` says, where that stands: for messages, empty for a dict)."""
    if isinstance(config, dict):
        return config, ""
    if not isinstance(config, (str, bytes, os.PathLike)):
        raise ConfigError(f"config must be a dict or the path of a JSON file, not {type(config).__name__}")
    if not os.path.exists(config):
        text = _of_base64(os.fspath(config))
        if text is not None:
            return _parsed(text, "the base64 config"), "the base64 config"
    source = f"config file {_name(config)}"
    return load_file(config), source


def load_file(path):
    """What a JSON or HJSON file holds. Errors: ConfigError."""
    source = f"config file {_name(path)}"
    return _parsed(_decoded(_bytes_of(path, source), source), source)


def _name(path):
    """For messages: what can't be printed of it is escaped, and the beginning of a long one left out."""
    name = os.fsdecode(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return name if len(name) <= _NAME_MAX else "..." + name[-_NAME_MAX:]


def _of_base64(text):
    """The JSON that DeepSpeed also takes as it is, in URL-safe base64; or None."""
    try:
        decoded = base64.urlsafe_b64decode(text).decode()
    except ValueError:  # also UnicodeError
        return None
    return decoded if decoded.lstrip().startswith("{") else None


def _without_waiting(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO's open would wait for a writer


def _bytes_of(path, source):
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{source} can't be read: it is not a regular file")
            data = file.read(_BYTES_MAX + 1)
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{source} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{source} can't be read: {error.strerror}") from None
    except ValueError as error:  # a NUL, or what the file system's encoding doesn't have
        raise ConfigError(f"{source} can't be read: {shown(error)}") from None
    if len(data) > _BYTES_MAX:
        raise ConfigError(f"{source} has more than {_BYTES_MAX >> 20} MiB: that is no configuration")
    return data


def _decoded(data, source):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source} is not UTF-8: byte {data[error.start]:#04x} in line {line}; save it as UTF-8") from None


def _no_duplicates(pairs):
    result = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"key {key!r} is given twice")
        result[key] = value
    return result


def _parsed(text, source):
    try:
        return _json_or_hjson(text, source)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(source) else f"{source}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None


def _json_or_hjson(text, source):
    if not text.strip():
        raise ConfigError(f"{source} is empty: write at least {{}}, which is all defaults")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        problem = error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{source} has a number that can't be read: {error}") from None
    try:
        import hjson
    except ImportError:
        raise ConfigError(f"{source} is not JSON: {problem} (to read HJSON, install the package hjson)") from None
    try:
        found = hjson.loads(text, object_pairs_hook=_no_duplicates)
    except (ConfigError, RecursionError):
        raise
    except Exception as error:  # HjsonDecodeError, and what else that package lets through
        raise ConfigError(f"{source} is neither JSON ({problem}) nor HJSON ({shown(error)})") from None
    if not found and not _COMMENTS.sub("", text).strip():
        raise ConfigError(f"{source} has nothing but comments: write at least {{}}, which is all defaults")
    return found
