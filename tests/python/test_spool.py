"""Values in unnamed files outside the block store: what comes back is what was written, or DataLoss."""

import errno
import gc
import os

import pytest
import torch
from adamw_loop import assert_equal, make_model, train, values

import sluice
from sluice.spools import spool
from sluice.spools.spool import SpoolFile

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool, torch.complex64]


def make(directory):
    return SpoolFile(directory, "a test", "do something else")


def descriptors(directory):
    """Of unnamed files there."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(f"{directory}/"):
            found.append(int(name))
    return found


def tensors():
    generator = torch.Generator().manual_seed(1)
    shapes = [(), (1,), (0,), (7, 3), (4096,), (33, 65)]
    return [torch.randint(0, 2, shape, generator=generator).to(dtype) for dtype in TYPES for shape in shapes]


def test_what_was_written_comes_back(tmp_path):
    file = make(tmp_path)
    written = tensors()
    records = [file.write(tensor, f"tensor {n}") for n, tensor in enumerate(written)]
    for tensor, record in reversed(list(zip(written, records))):
        back = torch.empty_like(tensor)
        file.read(record, back)
        assert torch.equal(back, tensor)
    back = torch.empty(3, 7)
    file.read(file.write(torch.arange(21.0).view(7, 3).t(), "not contiguous"), back)
    assert torch.equal(back, torch.arange(21.0).view(7, 3).t())
    assert os.listdir(tmp_path) == []


# ---- What a drive may do to bytes


SIZE = 3000  # floats


def refused(file, record, label):
    with pytest.raises(sluice.DataLoss, match=label) as caught:
        file.read(record, torch.empty(SIZE))
    return str(caught.value)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    file = make(tmp_path)
    records = [file.write(torch.randn(SIZE), f"tensor {n}") for n in range(3)]
    (fd,) = descriptors(tmp_path)
    positions = sorted({*range(0, 4 * SIZE, 97), 0, 1, 2, 3, 4 * SIZE - 1, 4095, 4096, 4 * SIZE // 2})
    for number, record in enumerate(records):
        for position in positions:
            byte = os.pread(fd, 1, 4 * SIZE * number + position)
            os.pwrite(fd, bytes([byte[0] ^ 1 << position % 8]), 4 * SIZE * number + position)
            words = refused(file, record, f"tensor {number} was not read back")
            assert str(tmp_path) in words and "a test" in words and "do something else" in words
            os.pwrite(fd, byte, 4 * SIZE * number + position)
        file.read(record, torch.empty(SIZE))


def test_records_in_each_others_place_are_found(tmp_path):
    file = make(tmp_path)
    same = torch.ones(SIZE)
    records = [file.write(same + n, f"tensor {n}") for n in range(2)]
    (fd,) = descriptors(tmp_path)
    first, second = (os.pread(fd, 4 * SIZE, 4 * SIZE * n) for n in range(2))
    os.pwrite(fd, second, 0), os.pwrite(fd, first, 4 * SIZE)
    refused(file, records[0], "tensor 0"), refused(file, records[1], "tensor 1")


def test_an_older_version_is_found(tmp_path):
    file = make(tmp_path)
    (fd,) = descriptors(tmp_path)
    record = file.write(torch.ones(SIZE), "tensor")
    old = os.pread(fd, 4 * SIZE, 0)
    record = file.write(torch.zeros(SIZE), "tensor", record)
    assert os.fstat(fd).st_size == 4 * SIZE, "it took its own place"
    back = torch.empty(SIZE)
    file.read(record, back)
    assert not back.any()
    os.pwrite(fd, old, 0)
    assert "version 2" in refused(file, record, "tensor")


@pytest.mark.parametrize("left", [0, 1, 4096, 4 * SIZE - 1])
def test_a_truncated_file_is_found(tmp_path, left):
    file = make(tmp_path)
    record = file.write(torch.ones(SIZE), "tensor")
    os.ftruncate(descriptors(tmp_path)[0], left)
    assert f"ends after {left} of {4 * SIZE}" in refused(file, record, "tensor")


# ---- What system calls may do


def faulty(monkeypatch, name, result):
    """os.<name> as spool.py sees it: result(the real one, data or length ...) each time."""
    real = getattr(os, name)

    class Os:
        def __getattr__(self, other):
            return getattr(os, other)

    module = Os()
    setattr(module, name, lambda *arguments: result(real, *arguments))
    monkeypatch.setattr(spool, "os", module)


def test_short_transfers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_PIECE", 1000)
    file, written = make(tmp_path), torch.randn(SIZE)
    faulty(monkeypatch, "pwrite", lambda real, fd, data, at: real(fd, data[: max(1, len(data) // 3)], at))
    record = file.write(written, "tensor")
    faulty(monkeypatch, "preadv", lambda real, fd, into, at: real(fd, [into[0][: max(1, len(into[0]) // 3)]], at))
    back = torch.empty(SIZE)
    file.read(record, back)
    assert torch.equal(back, written)


ERRNOS = {
    errno.ENOSPC: sluice.ResourceExhausted,
    errno.EDQUOT: sluice.ResourceExhausted,
    errno.EIO: sluice.DataLoss,
    errno.EBADF: sluice.Unavailable,
    errno.EPERM: sluice.PermissionDenied,
}


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_errors_say_where_and_what_to_do(tmp_path, monkeypatch, number, call):
    file = make(tmp_path)
    record = file.write(torch.ones(SIZE), "tensor 5")

    def fail(real, *arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        faulty(patch, call, fail)
        with pytest.raises(ERRNOS[number], match="tensor 5") as caught:
            file.write(torch.ones(SIZE), "tensor 5", record) if call == "pwrite" else file.read(record, torch.empty(SIZE))
    words = str(caught.value)
    assert errno.errorcode[number] in words and str(tmp_path) in words and "do something else" in words
    if call == "pwrite":
        refused(file, record, "tensor 5")  # half of it may have been written
    else:
        file.read(record, torch.empty(SIZE))


@pytest.mark.parametrize("path, error", [("missing", sluice.NotFound), ("a file/below", sluice.Unavailable)])
def test_a_directory_that_takes_no_file_is_named(tmp_path, path, error):
    (tmp_path / "a file").touch()
    with pytest.raises(error, match=str(tmp_path / path)):
        make(tmp_path / path)


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EISDIR])
def test_file_systems_without_unnamed_files_get_one_that_loses_its_name(tmp_path, monkeypatch, refusal):
    def without(real, path, flags, *mode):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(refusal, os.strerror(refusal))
        return real(path, flags, *mode)

    faulty(monkeypatch, "open", without)
    file = make(tmp_path)
    assert os.listdir(tmp_path) == [] and len(descriptors(tmp_path)) == 1
    file.read(file.write(torch.ones(SIZE), "tensor"), torch.empty(SIZE))


# ---- Who uses it


def test_the_descriptor_goes_with_the_last_reference(tmp_path):
    file = make(tmp_path)
    assert len(descriptors(tmp_path)) == 1
    file.close(), file.close()
    assert descriptors(tmp_path) == []
    file = make(tmp_path)
    del file
    assert descriptors(tmp_path) == []


def built(directory):
    torch.manual_seed(1)
    with sluice.init(directory=directory, limit_bytes=1000):
        return make_model()


def test_models_that_are_dropped_leave_no_descriptor(tmp_path):
    model = built(tmp_path)
    assert len(descriptors(tmp_path)) == 1
    del model
    gc.collect()
    assert descriptors(tmp_path) == []
    with pytest.raises(ZeroDivisionError), sluice.init(directory=tmp_path, limit_bytes=1000):
        make_model()
        1 / 0  # noqa: B018
    gc.collect()
    assert descriptors(tmp_path) == []


def test_a_flipped_bit_in_the_file_of_init_names_the_parameter(tmp_path):
    model = built(tmp_path)
    (fd,) = descriptors(tmp_path)
    byte = os.pread(fd, 1, 100)
    os.pwrite(fd, bytes([byte[0] ^ 4]), 100)
    with pytest.raises(sluice.DataLoss, match=r"Linear.weight of shape \(96, 8\) was not read back"):
        sluice.initialize(model=model, config={"sluice": {"hbm": "1MiB", "pinned": "8MiB", "device": "host"}})
    del model
    gc.collect()
    assert descriptors(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "swap", "truncate", None])
def test_states_on_their_way_into_a_larger_store_are_verified(tmp_path, monkeypatch, damage):
    model = make_model()
    tiers = {"pinned": "8MiB", "nvme_path": tmp_path, "workers": 1}
    optimizer = sluice.AdamW(model[2].named_parameters(), lr=1e-2, **tiers)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": list(model[4].named_parameters())})
    restore = sluice.optimizers.state_store.StateStore.restore

    def damaged(store, spooled):
        fd = next(f for f in descriptors(tmp_path) if os.fstat(f).st_size == 2 * 4 * (96 * 64 + 64))  # moments
        size = 4 * 96 * 64
        first, second = os.pread(fd, size, 0), os.pread(fd, size, size)
        if damage == "flip":
            os.pwrite(fd, bytes([first[500] ^ 1]), 500)
        elif damage == "swap":
            os.pwrite(fd, second, 0), os.pwrite(fd, first, size)
        elif damage == "truncate":
            os.ftruncate(fd, size + 4)
        try:
            restore(store, spooled)
        finally:
            os.pwrite(fd, first, 0), os.pwrite(fd, second, size)

    before = values(model)
    monkeypatch.setattr(sluice.optimizers.state_store.StateStore, "restore", damaged)
    if damage is None:
        optimizer.step()
        return optimizer.close()
    with pytest.raises(sluice.DataLoss, match="the optimizer's states of parameter weight was not read back"):
        optimizer.step()
    assert_equal(values(model), before)
    optimizer.close()
    assert descriptors(tmp_path) == []
