"""Values of settings, of keys and arguments alike, checked and converted by the type that their rule (keys.py) gives them."""

import fractions
import math
import numbers
import os
import re

from ..native.checked import shown
from ..native.errors import ConfigError
from .keys import BYTES_MAX, WHOLE_MAX

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$", re.ASCII)
_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30}
_FACTORS.update({"t": 1 << 40, "tib": 1 << 40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12})
_SIZE_CHARACTERS = 64


def parse_bytes(value, name="size"):
    """512 -> 512, "512MiB" -> 536870912. None stays None. Errors: ConfigError."""
    if value is None:
        return None
    size = _size(value)
    if size is None:
        raise ConfigError(f"{name}: {shown(value)} is not a size; write it like 512MiB, 1.5GiB or 1000000")
    if size > BYTES_MAX:
        raise ConfigError(f"{name}: {shown(value)} is more than {BYTES_MAX} bytes, the most there can be")
    return size


def _size(value):
    number = _plain(value)
    if number is not None:
        return int(number) if 0 <= number < math.inf and number == int(number) else None
    if not isinstance(value, str) or len(value) > _SIZE_CHARACTERS:
        return None
    match = _SIZE.match(value)
    if match is None or match.group(2).lower() not in _FACTORS:
        return None
    return round(fractions.Fraction(match.group(1)) * _FACTORS[match.group(2).lower()])


def _plain(value):
    """A number of anybody's as one of Python's own, or None; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


# (rule, value, where) -> value


def _number(rule, value, where):
    return _real(value, where, 0, rule.high)


def _real(value, where, low, high):
    number = _plain(value)
    if number is None or number != number:
        raise ConfigError(f"{where}: must be a number, not {shown(value)}")
    try:
        number = float(number)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if number < low or number == math.inf or (high is not None and number > high):
        most = "finite" if high is None else f"at most {high}"
        raise ConfigError(f"{where}: must be at least {low} and {most}, not {shown(value)}")
    return number


def _whole(low):
    def check(rule, value, where):
        high = WHOLE_MAX if rule.high is None else rule.high
        number = _plain(value)
        if number is None:
            raise ConfigError(f"{where}: must be a number, not {shown(value)}")
        if isinstance(number, float) and not number.is_integer():  # also inf and nan
            raise ConfigError(f"{where}: must be a whole number, not {shown(value)}")
        if not low <= number <= high:
            raise ConfigError(f"{where}: must be a whole number from {low} to {high}, not {shown(value)}")
        return int(number)

    return check


def _instance(types, what):
    def check(rule, value, where):
        if not isinstance(value, types):
            raise ConfigError(f"{where}: must be {what}, not {shown(value)}")
        return value

    return check


def _betas(rule, value, where):
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{where}: must be two numbers, not {shown(value)}")
    betas = tuple(_real(beta, where, 0, None) for beta in value)
    if max(betas) >= 1:
        raise ConfigError(f"{where}: must be below 1, not {shown(value)}")
    return betas


def _path(rule, value, where):
    try:
        path = os.fsdecode(value)
        os.fsencode(path)
    except (TypeError, UnicodeError):
        raise ConfigError(f"{where}: must be a path, not {shown(value)}") from None
    if not path or "\0" in path:
        raise ConfigError(f"{where}: must be a path, not {shown(value)}, which no file system can have")
    return path


def paths_of(value, where):
    """One path or several (str, bytes or PathLike) as a tuple of str; what isn't UTF-8 in them is kept. Errors:
    ConfigError."""
    if isinstance(value, (str, bytes, os.PathLike)):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: must be a directory or a list of them, not {shown(value)}")
    return tuple(_path(None, path, where) for path in value)


_TYPES = {
    "bool": _instance(bool, "true or false"),
    "text": _instance(str, "a string"),
    "section": _instance(dict, "an object"),
    "number": _number,
    "count": _whole(0),
    "positive": _whole(1),
    "size": lambda rule, value, where: parse_bytes(value, where),
    "betas": _betas,
    "path": _path,
    "paths": lambda rule, value, where: paths_of(value, where),
}


def checked(rule, value, where):
    """`value` as the rule (a Key) has it, converted by its type; None stays None. Errors: ConfigError, which opens with
    `where`, the name of a key or of an argument."""
    if value is None:
        return None
    if isinstance(rule.type, tuple):
        plain = isinstance(value, (str, numbers.Real)) and not isinstance(value, bool)
        found = [choice for choice in rule.type if plain and choice == value]
        if not found:
            raise ConfigError(f"{where}: must be one of {', '.join(map(str, rule.type))}, not {shown(value)}")
        return found[0]
    return _TYPES[rule.type](rule, value, where)
