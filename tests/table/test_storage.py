"""The files of a teacher table: order of writes, several writers, damage, SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillation.errors import DataError, ShapeError
from distillation.table.storage import ENTRIES, MARKS, TableStorage, checksums

SHAPE = (20, 6, 10)  # samples, views, width


def entries_of(sample, view, width=10):
    """What the teacher of these tests says: a pure function of the key."""
    place = np.asarray(sample)[:, None] * 100 + np.asarray(view)[:, None]
    return (np.sin(place + np.arange(width) / 7.0) * 9).astype(np.float16)


@pytest.fixture
def storage(tmp_path):
    TableStorage.create(tmp_path, SHAPE)
    storage = TableStorage(tmp_path, SHAPE)
    yield storage
    storage.close()


keys = st.lists(
    st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1)), min_size=1, max_size=40
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(keys, min_size=1, max_size=5))
def test_whatever_is_written_in_whatever_order_reads_back_to_the_bit(tmp_path, batches):
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    TableStorage.create(folder, SHAPE)
    storage, stored = TableStorage(folder, SHAPE), {}
    for batch in batches:
        sample, view = np.array(batch).T
        storage.write(sample, view, entries_of(sample, view))
        stored |= {key: entries_of([key[0]], [key[1]])[0] for key in batch}
    storage.close()

    again = TableStorage(folder, SHAPE)
    everything = np.argwhere(np.ones(SHAPE[:2], dtype=bool))
    filled = again.filled(*everything.T)
    assert {tuple(key) for key in everything[filled].tolist()} == set(stored)
    assert again.count() == len(stored)
    sample, view = np.array(list(stored)).T
    assert again.read(sample, view).tobytes() == np.stack(list(stored.values())).tobytes()
    again.close()


def test_the_first_writer_of_an_entry_wins(storage):
    key = np.array([3]), np.array([2])
    storage.write(*key, entries_of(*key))
    storage.write(*key, np.zeros((1, 10), np.float16))
    assert np.array_equal(storage.read(*key), entries_of(*key))


def test_an_entry_of_zeros_counts_as_stored(storage):
    key = np.array([0]), np.array([0])
    storage.write(*key, np.zeros((1, 10), np.float16))
    assert storage.filled(*key).all()
    assert not storage.read(*key).any()


def test_reading_what_was_never_written_names_the_key(storage):
    with pytest.raises(DataError, match="no entry for sample 7, view 5"):
        storage.read(np.array([7]), np.array([5]))


@pytest.mark.parametrize(
    ("sample", "view", "named"), [(20, 0, "sample 20"), (0, 6, "view 6"), (-1, 0, "sample -1")]
)
def test_keys_outside_the_table_are_named(storage, sample, view, named):
    with pytest.raises(ShapeError, match=f"{named} is outside the table"):
        storage.filled(np.array([sample]), np.array([view]))


def test_one_flipped_bit_in_an_entry_is_an_error_and_never_a_soft_target(storage):
    sample, view = np.array([4, 5]), np.array([1, 1])
    storage.write(sample, view, entries_of(sample, view))
    storage.close()
    path = storage.folder / ENTRIES
    content = bytearray(path.read_bytes())
    content[(5 * 6 + 1) * 20 + 7] ^= 0x10
    path.write_bytes(content)

    again = TableStorage(storage.folder, SHAPE)
    again.read(sample[:1], view[:1])
    with pytest.raises(DataError, match="sample 5, view 1 does not fit its checksum"):
        again.read(sample, view)
    assert list(again.damaged()) == [(5, 1)]
    again.forget(sample[1:], view[1:])
    assert again.filled(sample, view).tolist() == [True, False]
    again.close()


@given(words=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50), data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_single_changed_word_changes_the_checksum(words, data):
    place = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.integers(0, 2**16 - 1).filter(lambda w: w != words[place]))
    entry = np.array([words], dtype="<u2")
    changed = entry.copy()
    changed[0, place] = other
    before, after = checksums(entry.view("<f2")), checksums(changed.view("<f2"))
    # 65,521 is prime and below 2^16: words that differ by exactly it are the only blind spot.
    assert before != after or abs(int(other) - words[place]) == 65_521
    assert before != 0


def test_cut_off_and_missing_files_are_refused(storage):
    storage.close()
    os.truncate(storage.folder / ENTRIES, 100)
    with pytest.raises(DataError, match=r"100 bytes and must have 2,400"):
        TableStorage(storage.folder, SHAPE)
    (storage.folder / MARKS).unlink()
    os.truncate(storage.folder / ENTRIES, 2400)
    with pytest.raises(DataError, match=MARKS):
        TableStorage(storage.folder, SHAPE)


def refuse_to_open(monkeypatch, code, flags):
    """As for an account without the right; the tests may run as one that has all rights."""
    open_ = os.open

    def refusing(path, asked, *rest, **options):
        if asked & (os.O_RDWR | os.O_WRONLY) in flags:
            raise OSError(code, os.strerror(code), str(path))
        return open_(path, asked, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_table_that_cannot_be_written_is_read_all_the_same(storage, monkeypatch, code):
    key = np.array([3]), np.array([2])
    storage.write(*key, entries_of(*key))
    storage.close()
    refuse_to_open(monkeypatch, code, [os.O_RDWR])
    again = TableStorage(storage.folder, SHAPE)
    assert np.array_equal(again.read(*key), entries_of(*key))
    with pytest.raises(DataError, match=rf"cannot be written here \({os.strerror(code)}\)"):
        again.write(np.array([4]), np.array([2]), entries_of([4], [2]))
    again.close()


def test_only_a_damaged_table_is_one_to_delete(storage, monkeypatch):
    storage.close()
    with monkeypatch.context() as patched:
        refuse_to_open(patched, errno.EACCES, [os.O_RDWR, os.O_RDONLY])
        with pytest.raises(DataError, match="cannot be opened: Permission denied") as told:
            TableStorage(storage.folder, SHAPE)
        assert "delete" not in str(told.value)
    (storage.folder / MARKS).unlink()
    with pytest.raises(DataError, match="missing; delete the folder"):
        TableStorage(storage.folder, SHAPE)


def test_a_system_without_pwrite_writes_all_the_same(storage, monkeypatch):
    """Windows, for one."""
    monkeypatch.delattr(os, "pwrite", raising=False)
    sample, view = np.array([7, 1, 2]), np.array([5, 0, 0])
    storage.write(sample, view, entries_of(sample, view))
    assert np.array_equal(storage.read(sample, view), entries_of(sample, view))


def test_a_full_disk_is_an_error_and_leaves_what_was_stored(storage):
    resource = pytest.importorskip("resource")
    first = np.array([0]), np.array([0])
    storage.write(*first, entries_of(*first))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(DataError, match=r"entries\.f16 .* cannot be written"):
            storage.write(np.array([19]), np.array([5]), entries_of([19], [5]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert storage.count() == 1
    assert np.array_equal(storage.read(*first), entries_of(*first))


WRITER = textwrap.dedent("""
    import sys, numpy as np
    sys.path.insert(0, {here!r})
    from test_storage import entries_of
    from distillation.table.storage import TableStorage
    storage = TableStorage({folder!r}, (4000, 6, 10))
    keys = np.random.default_rng({seed}).permutation(24000)
    for start in range(0, 24000, 16):
        sample, view = np.divmod(keys[start:start + 16], 6)
        storage.write(sample, view, entries_of(sample, view))
        print(start, flush=True)
""")


def writer(folder, seed):
    here = Path(__file__).resolve().parent
    code = WRITER.format(here=str(here), folder=str(folder), seed=seed)
    path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_two_writers_killed_at_any_moment_leave_only_right_entries(tmp_path):
    TableStorage.create(tmp_path, (4000, 6, 10))
    storage = TableStorage(tmp_path, (4000, 6, 10))
    for round_ in range(3):
        processes = [writer(tmp_path, seed) for seed in (round_, round_ + 100)]
        lines = [process.stdout.readline() for process in processes]
        assert all(line.strip() == b"0" for line in lines)
        time.sleep(0.1 * round_ + 0.03)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        told = [len(process.communicate()[0].splitlines()) + 1 for process in processes]

        every = np.argwhere(storage.filled_map())
        found = storage.read(*every.T)
        assert np.array_equal(found, entries_of(*every.T))
        # Whatever a writer had reported as stored is stored: a kill loses one batch at most.
        for seed, batches in zip((round_, round_ + 100), told, strict=True):
            keys = np.random.default_rng(seed).permutation(24000)[: batches * 16]
            assert storage.filled(*np.divmod(keys, 6)).all()
    # A killed writer's lock is free again.
    storage.write(np.array([0]), np.array([0]), entries_of([0], [0]))
    storage.close()


def test_a_table_can_be_looked_through_while_another_fills_it(tmp_path):
    shape = (4000, 162, 2)
    TableStorage.create(tmp_path, shape)
    reader, writer = (TableStorage(tmp_path, shape) for _ in range(2))
    ended = threading.Event()

    def fill():
        rng = np.random.default_rng(0)
        while not ended.is_set():
            sample, view = rng.integers(0, shape[0], 64), rng.integers(0, shape[1], 64)
            writer.write(sample, view, np.ones((64, 2), np.float16))

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        for _ in range(100):
            reader.sound(2)
        assert list(reader.damaged()) == []
    finally:
        ended.set()
        filling.join()
        reader.close()
        writer.close()
