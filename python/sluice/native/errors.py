"""What the library reports, as exceptions (abi.py raises them, with the library's own words), and a configuration's."""


class SluiceError(RuntimeError):
    """An error of the library; the message says what happened and what to do."""


class InvalidArgument(SluiceError, ValueError):
    pass


class FailedPrecondition(SluiceError):
    pass


class ResourceExhausted(SluiceError, MemoryError):
    pass


class NotFound(SluiceError):
    pass


class DataLoss(SluiceError):
    pass


class Unavailable(SluiceError):
    pass


class PermissionDenied(SluiceError):
    pass


class NotOpen(InvalidArgument):
    """A wait for a ticket that was waited for before, or never given."""


class ConfigError(ValueError):
    """The configuration can't be used; the message names the key and what to do."""


for _error in [*globals().values()]:  # tracebacks name them as users do
    if isinstance(_error, type) and issubclass(_error, Exception):
        _error.__module__ = "sluice"
