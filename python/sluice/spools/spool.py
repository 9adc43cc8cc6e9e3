"""Values in an unnamed file outside the block store, verified when they come back.

Every record has a checksum (the one of the library's blocks) that is seeded with its number and its version. It is kept
in RAM, not in the file: flipped, lost, stale and misplaced bytes are all found. The file has no name and is closed with
the last reference to it. One thread.
"""

import errno
import os
import tempfile
import weakref

import torch

from ..native import abi

_PIECE = 8 << 20  # bytes of one system call


class Record:
    """One value in the file; opaque to others."""

    __slots__ = ("label", "number", "offset", "nbytes", "version", "checksum")

    def __init__(self, label, number, offset, nbytes):
        self.label, self.number, self.offset, self.nbytes = label, number, offset, nbytes
        self.version, self.checksum = 0, None


class SpoolFile:
    """directory: where the file is made; None: the system's temporary one. whose, advice: for messages: what the file is
    for, and how another directory is chosen. Errors, here and below: ResourceExhausted (no space), DataLoss, and
    other SluiceErrors, naming the directory."""

    def __init__(self, directory, whose, advice):
        self._directory = os.fspath(directory) if directory is not None else tempfile.gettempdir()
        self._whose, self._advice = whose, advice
        self._library = abi.Library.default()
        try:
            self._fd = _open_unnamed(self._directory)
        except OSError as error:
            raise self._failed("can't be made", error) from error
        self._close = weakref.finalize(self, os.close, self._fd)
        self._end = 0
        self._count = 0

    def write(self, tensor, label, replaced=None):
        """The Record of a copy of the tensor. label: what it is, for messages. replaced: a record whose place it takes,
        of the same size; None: a new place. What that was is lost also if this fails."""
        values = tensor.detach().cpu().contiguous()
        record = replaced
        if record is None:
            record = Record(label, self._count, self._end, values.nbytes)
            self._count += 1
            self._end += values.nbytes
        assert record.nbytes == values.nbytes
        record.label = label
        record.version += 1
        record.checksum = None
        data, done = _bytes_of(values), 0
        while done < len(data):
            try:
                moved = os.pwrite(self._fd, data[done : done + _PIECE], record.offset + done)
            except OSError as error:
                raise self._failed(f"can't take {label}", error) from error
            if moved == 0:
                raise abi.Unavailable(f"{self._file()} takes no more of {label}: {self._advice}")
            done += moved
        record.checksum = self._checksum(values, record)
        return record

    def read(self, record, values):
        """Into `values`, a contiguous tensor in RAM of the type and shape that was written. Errors: DataLoss, with
        anything in `values`, if that is not what was written."""
        assert record.nbytes == values.nbytes
        data, done = _bytes_of(values), 0
        while done < len(data):
            try:
                moved = os.preadv(self._fd, [data[done : done + _PIECE]], record.offset + done)
            except OSError as error:
                raise self._failed(f"can't give {record.label} back", error) from error
            if moved == 0:
                raise self._lost(record, f"it ends after {done} of {record.nbytes} bytes")
            done += moved
        if record.checksum is None or self._checksum(values, record) != record.checksum:
            raise self._lost(record, "the checksum of what was read is another")

    def close(self):
        """Gives the space back. Does nothing the second time."""
        self._close()

    def _checksum(self, values, record):
        return self._library.checksum(values.data_ptr(), values.nbytes, record.number, record.version)

    def _file(self):
        return f"the unnamed file of {self._whose} in {self._directory}"

    def _lost(self, record, how):
        return abi.DataLoss(
            f"{record.label} was not read back as it was written: {how} (record {record.number}, version {record.version}, at "
            f"{record.offset} of {self._file()}): look for errors of that drive; {self._advice}"
        )

    def _failed(self, what, error):
        name = errno.errorcode.get(error.errno, error.errno)
        return _ERRORS.get(error.errno, abi.Unavailable)(
            f"{self._file()} {what}: {error.strerror} ({name}); {self._advice}"
        )


_ERRORS = {
    errno.ENOSPC: abi.ResourceExhausted,
    errno.EDQUOT: abi.ResourceExhausted,
    errno.EMFILE: abi.ResourceExhausted,
    errno.ENFILE: abi.ResourceExhausted,
    errno.ENOENT: abi.NotFound,
    errno.EACCES: abi.PermissionDenied,
    errno.EPERM: abi.PermissionDenied,
    errno.EROFS: abi.PermissionDenied,
    errno.EIO: abi.DataLoss,
}


def _open_unnamed(directory):
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, name = tempfile.mkstemp(dir=directory)  # a file system without unnamed files
    try:
        os.unlink(name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _bytes_of(values):
    return memoryview(values.view(-1).view(torch.uint8).numpy())
