"""Values on their way into C and out of it. ctypes cuts what a C type doesn't hold, and says nothing; here it is refused,
by the name of the field or argument."""

import ctypes
import math
import numbers
import operator
import os

from .errors import InvalidArgument

_RANGES = {
    ctypes.c_int32: (-(1 << 31), (1 << 31) - 1),
    ctypes.c_uint32: (0, (1 << 32) - 1),
    ctypes.c_int64: (-(1 << 63), (1 << 63) - 1),
    ctypes.c_uint64: (0, (1 << 64) - 1),
    ctypes.c_size_t: (0, (1 << 64) - 1),
}
_ADDRESS_MAX = (1 << 64) - 1
_SHOWN = 80  # characters


def shown(value):
    """repr(value) for a message: short, and never an error of its own."""
    try:
        text = repr(value)
    except Exception:  # too many digits, too deep, or the value's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def whole(name, value, low, high):
    """`value` as an int. Errors: InvalidArgument unless it is a whole number (not a bool) from low to high."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise InvalidArgument(f"{name}: must be a whole number from {low} to {high}, not {shown(value)}")
    return number


def real(name, value):
    """`value` as a float. Errors: InvalidArgument unless it is a finite number (not a bool)."""
    number = None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
    if number is None or not math.isfinite(number):
        raise InvalidArgument(f"{name}: must be a finite number, not {shown(value)}")
    return number


def path_bytes(name, path):
    """A path (str, bytes or PathLike) as the bytes that the system knows it by. Errors: InvalidArgument."""
    try:
        encoded = os.fsencode(path)
    except (TypeError, UnicodeError):
        raise InvalidArgument(f"{name}: must be a path, not {shown(path)}") from None
    return _text(name, encoded)


def decoded(text):
    """Text of the library's; it may hold paths that are not UTF-8."""
    return text.decode("utf-8", "replace")


def _text(name, value):
    if value is not None and b"\0" in value:
        raise InvalidArgument(f"{name}: must not hold a NUL character, as {shown(value)} does")
    return value


def converted(ctype, name, value):
    """`value` for a field or argument of that C type, where nothing of it is lost. Errors: InvalidArgument."""
    if type(value) is ctype:
        return value
    if ctype in _RANGES:
        low, high = _RANGES[ctype]
        if type(value) is int and low <= value <= high:
            return value
        return value if isinstance(value, ctype) else whole(name, value, low, high)
    if ctype is ctypes.c_double and not isinstance(value, ctype):
        return real(name, value)
    if ctype is ctypes.c_void_p and not isinstance(value, ctype):
        return None if value is None else whole(name, value, 0, _ADDRESS_MAX)
    if ctype is ctypes.c_char_p and isinstance(value, bytes):
        return _text(name, value)
    return value  # a pointer, a buffer, a structure: ctypes looks at their types


class Structure(ctypes.Structure):
    """A C struct whose fields are checked whenever they are set."""

    def __init_subclass__(cls):
        cls._types = dict(cls._fields_)

    def __setattr__(self, name, value):
        if name in self._types:
            value = converted(self._types[name], name, value)
        elif not name.startswith("_"):
            raise TypeError(f"{type(self).__name__} has no field {name}")
        super().__setattr__(name, value)
