"""SessionStore and Vocabulary: contents, saving and opening, damaged folders, and interrupted writes."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_oracle import assert_same_store, tiny_batches
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.format import write_array_header_1_0

from gru4rec_fast import InteractionGraph
from gru4rec_fast._atomic_writes import replace_folder
from gru4rec_fast.data import SessionStore, Vocabulary, prepare

LOG = {"SessionId": ["b", "b", "a", "é", "é"], "ItemId": [7, 9, 7, 11, 9], "Time": [1.0, 2.0, 3.0, 4.0, 5.0]}


@pytest.fixture
def store() -> SessionStore:
    return SessionStore.from_events(LOG)


def test_saved_store_opens_memory_mapped_and_equal(tmp_path: Path, store: SessionStore) -> None:
    store.save(tmp_path / "store")
    opened = SessionStore.open(str(tmp_path / "store"))
    assert_same_store(opened, store)
    for array in (opened.items, opened.offsets, opened.start_times, opened.end_times, opened.support):
        assert isinstance(array, np.memmap) and not array.flags.writeable
    assert (opened.n_events, opened.n_sessions, opened.n_items) == (5, 3, 3)
    assert (opened.n_targets, opened.n_short_sessions) == (store.n_targets, store.n_short_sessions) == (2, 1)
    assert opened.session_ids.tolist() == ["b", "a", "é"]
    assert repr(opened) == "SessionStore(3 sessions, 5 events, 3 items)"
    opened.save(tmp_path / "store")  # replaces the files that `opened` maps
    assert_same_store(SessionStore.open(tmp_path / "store"), opened)


def test_saved_arrays_are_not_pickled(tmp_path: Path, store: SessionStore) -> None:
    store.save(tmp_path / "store")
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in (tmp_path / "store").glob("*.npy")}
    assert arrays.keys() >= {"items", "offsets", "start_times", "end_times", "support"}


def test_from_arrays_defaults() -> None:
    store = SessionStore.from_arrays([2, 0, 2, 1], [0, 3, 3, 4], n_items=5)
    assert (store.n_events, store.n_sessions, store.n_items, store.n_targets, store.n_short_sessions) == (4, 3, 5, 2, 2)
    assert store.items.dtype == np.int32 and store.support.tolist() == [1, 1, 2, 0, 0]
    assert store.start_times.tolist() == store.session_ids.tolist() == [0, 1, 2]
    assert store.vocabulary == Vocabulary(range(5))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"offsets": [0, 2]}, r"offsets must be non-decreasing, from 0 to the number of events \(3\)"),
        ({"offsets": [1, 3]}, "offsets must be non-decreasing"),
        ({"offsets": [0, 2, 1, 3]}, "offsets must be non-decreasing"),
        ({"offsets": []}, "offsets must be non-decreasing"),
        ({"offsets": [0.0, 3.0]}, "offsets must be a one-dimensional integer array, not float64"),
        ({"items": [[0, 1, 1]]}, r"items must be a one-dimensional integer array, not int64 of shape \(1, 3\)"),
        ({"items": [0, -1, 1]}, r"items\[1\]=-1 is out of range"),
        ({"n_items": 1}, r"items\[1\]=1 is out of range: there are 1 items, counted from 0"),
        ({"items": [214_536_502, 0, 1]}, "items: the largest index is 214536502, but there are only 3 values"),
        ({"vocabulary": Vocabulary(["x", "y"]), "n_items": 3}, "n_items=3, but there are 2 ids of items"),
        ({"start_times": [0, 1]}, r"start_times has shape \(2,\), but there are 1 sessions"),
        ({"session_ids": ["a", "b"]}, r"session_ids has shape \(2,\)"),
        ({"end_times": [np.nan]}, "end_times must be finite"),
        ({"offsets": [0, 1, 3], "start_times": [2, 1]}, "start_times must be non-decreasing"),
    ],
)
def test_from_arrays_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionStore.from_arrays(**{"items": [0, 1, 1], "offsets": [0, 3], **arguments})


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def convert_to(dtype: Any) -> Callable[[Path], None]:
    """Return a function that converts the array in a .npy file to `dtype`."""
    return lambda path: np.save(path, np.load(path).astype(dtype))


def change_meta(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes keys of a JSON file."""

    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("items.npy", cut_short, r"items\.npy is damaged or was cut short .*prepare the session store again"),
        ("offsets.npy", lambda path: path.write_bytes(b""), r"offsets\.npy is damaged"),
        ("support.npy", Path.unlink, r"support\.npy is missing"),
        ("vocabulary.ids.npy", Path.unlink, r"vocabulary\.ids\.npy is missing"),
        (
            "start_times.npy",
            lambda path: np.save(path, np.arange(9.0)),
            r"start_times\.npy has shape \(9,\) where \(3,\)",
        ),
        (
            "items.npy",
            convert_to(np.int64),
            r"items\.npy holds int64 where int32 was expected; prepare the session store",
        ),
        ("offsets.npy", convert_to(">i8"), r"offsets\.npy holds >i8 where int64 was expected"),
        ("support.npy", convert_to(np.float64), r"support\.npy holds float64 where int64 was expected"),
        ("end_times.npy", convert_to(np.int32), r"end_times\.npy holds int32 where int64 or float64 was expected"),
        ("vocabulary.ids.npy", convert_to(np.uint8), r"vocabulary\.ids\.npy holds uint8 where int64 was expected"),
        (
            "items.npy",
            lambda path: np.save(path, np.zeros((5, 1), np.int32)),
            r"items\.npy has shape \(5, 1\) where \(5,\) was expected",
        ),
        (
            "offsets.npy",
            lambda path: np.save(path, np.arange(4)),
            r"offsets\.npy is damaged: it ranges from 0 to 3, not from 0 to 5; prepare the session store again",
        ),
        (
            "offsets.npy",
            lambda path: np.save(path, [0, 4, 3, 5]),
            r"offsets\.npy is damaged: it holds decreasing offsets; prepare the session store again",
        ),
        (
            "support.npy",
            lambda path: np.save(path, [3, -1, 3]),
            r"support\.npy is damaged: it holds -1 to 3, not 0 to 5",
        ),
        (
            "items.npy",
            lambda path: np.save(path, np.array([0, 1, 3, 2, 0], np.int32)),
            r"items\.npy is damaged: it holds 0 to 3, not 0 to 2; prepare the session store again",
        ),
        (
            "items.npy",
            lambda path: np.save(path, np.array([0, -1, 1, 2, 0], np.int32)),
            r"items\.npy is damaged: it holds -1 to 2, not 0 to 2",
        ),
        (
            "end_times.npy",
            lambda path: np.save(path, [1.0, np.nan, 2.0]),
            r"end_times\.npy is damaged: it holds nan to nan, not finite numbers",
        ),
        (
            "items.npy",
            lambda path: path.write_bytes(path.read_bytes().replace(b"(5,)", b"(5, ")),
            r"items\.npy is damaged \(its header cannot be read: [^\n]*\); prepare",
        ),
        (
            "vocabulary.ids.npy",
            lambda path: np.save(path, [7, 7, 9]),
            r"vocabulary\S* is damaged: .*the id 7 occurs more",
        ),
        ("meta.json", change_meta(n_sessions=-1), r"meta\.json is damaged: it lacks n_sessions"),
        ("meta.json", cut_short, r"meta\.json is damaged"),
        ("meta.json", lambda path: path.write_text("[" * 99_999), r"meta\.json is damaged: .* nested too deeply"),
        ("meta.json", lambda path: path.write_text("[]"), "is no session store: its meta.json states the format None"),
        (
            "meta.json",
            change_meta(version=9),
            "has format version 9, this release of gru4rec_fast reads version 1; prepare",
        ),
        ("meta.json", change_meta(n_targets=None), r"meta\.json is damaged: it lacks n_targets"),
        ("meta.json", change_meta(n_short_sessions=True), r"meta\.json is damaged: it lacks n_short_sessions"),
        ("meta.json", change_meta(n_targets=3), r"meta\.json is damaged: it states 3 targets and 1 short sessions"),
        ("meta.json", change_meta(n_short_sessions=2), r"meta\.json is damaged: it states 2 targets and 2 short"),
        ("meta.json", change_meta(dropped=None), r"meta\.json is damaged: it has \"dropped\" that are not counts"),
        (
            "meta.json",
            change_meta(dropped={"x": "y"}),
            r"meta\.json is damaged: it has \"dropped\" that are not counts",
        ),
        ("meta.json", change_meta(ids={"item": [1]}), r"meta\.json is damaged: it has \"ids\" that do not state kind"),
        ("meta.json", change_meta(format="x" * 5_000_000), r"states the format 'x{90,100}\.\.\.$"),
    ],
)
def test_open_names_a_damaged_file(
    tmp_path: Path, store: SessionStore, file: str, damage: Callable[[Path], Any], message: str
) -> None:
    store.save(tmp_path / "store")
    damage(tmp_path / "store" / file)
    with pytest.raises(ValueError, match=message):
        SessionStore.open(tmp_path / "store")


def mark_as_objects(path: Path) -> None:
    """Change the dtype in the header to object, so that NumPy would use the bytes as pointers."""
    header = {"descr": "|O", "fortran_order": False, "shape": np.load(path).shape}
    with open(path, "wb") as file:
        write_array_header_1_0(file, header)
        file.write(b"\1" * 8 * header["shape"][0])


# Functions that damage the .npy file with the given path.
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "objects": mark_as_objects,
    "a pipe": lambda path: path.unlink() or os.mkfifo(path),  # opening a named pipe would block
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "missing": Path.unlink,
    "cut short": cut_short,
    "other type": convert_to(np.float32),
    "other byte order": lambda path: np.save(path, (array := np.load(path)).astype(array.dtype.newbyteorder())),
    "one more": lambda path: np.save(path, np.append(np.load(path), np.load(path)[-1:])),
    "two dimensions": lambda path: np.save(path, np.load(path)[:, None]),
}
# Kind of folder: function that builds the object to save, names of its number arrays, names of its id arrays.
KINDS: dict[str, tuple[Callable[[bool], Any], list[str], list[str]]] = {
    "store": (
        lambda string_ids: build_from_log(SessionStore.from_events, string_ids),
        ["items", "offsets", "start_times", "end_times", "support"],
        ["vocabulary", "session_ids"],
    ),
    "graph": (
        lambda string_ids: build_from_log(InteractionGraph.from_table, string_ids, user_key="SessionId"),
        ["offsets", "neighbors"],
        ["users", "items"],
    ),
}


def build_from_log(read: Callable[..., Any], string_ids: bool, **keys: str) -> Any:
    """Build a store or a graph with the function `read` from a log of six events with string or integer ids."""
    make_id = (lambda letter, k: f"{letter}{k}") if string_ids else (lambda letter, k: k)
    columns = {"SessionId": [make_id("u", k // 2) for k in range(6)], "ItemId": [make_id("i", k % 4) for k in range(6)]}
    return read({**columns, "Time": range(6)}, **keys)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("string_ids", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_open_names_every_damaged_array_in_one_line(tmp_path: Path, kind: str, string_ids: bool, damage: str) -> None:
    build, arrays, ids = KINDS[kind]
    original = build(string_ids)
    original.save(tmp_path / "original")
    suffixes = ("utf8", "offsets") if string_ids else ("ids",)
    names = [*arrays, *(f"{name}.{suffix}" for name in ids for suffix in suffixes)]
    assert sorted(f"{name}.npy" for name in names) == sorted(p.name for p in (tmp_path / "original").glob("*.npy"))
    for name in names:
        if damage == "other byte order" and name.endswith("utf8"):
            continue  # bytes have no byte order
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        shutil.copytree(tmp_path / "original", tmp_path / "folder")
        DAMAGES[damage](tmp_path / "folder" / f"{name}.npy")
        # If NAME.utf8.npy is missing, the ids could also be integers, in NAME.ids.npy.
        named_file = name.replace("utf8", r"(utf8|ids)") if damage == "missing" else name
        advice = "(prepare the session store|save the interaction graph) again"
        with pytest.raises(ValueError, match=rf"{named_file}\.npy [^\n]*; {advice}$"):
            opened = type(original).open(tmp_path / "folder")
            getattr(opened, "session_ids", None)  # a store reads its session ids when they are first used


@pytest.mark.parametrize(("kind", "name"), [("store", "vocabulary"), ("graph", "items")])
def test_open_names_damaged_string_ids(tmp_path: Path, kind: str, name: str) -> None:
    build, _, _ = KINDS[kind]
    original = build(True)  # string ids
    original.save(tmp_path / "folder")
    path = tmp_path / "folder" / f"{name}.utf8.npy"
    np.save(path, np.full_like(np.load(path), 0xFF))
    with pytest.raises(ValueError, match=rf"{name}\.utf8\.npy is damaged: it is not UTF-8 text \(.*utf-8"):
        type(original).open(tmp_path / "folder")
    original.save(tmp_path / "folder")
    np.save(tmp_path / "folder" / f"{name}.offsets.npy", [0, 4, 2, 6, 8])
    with pytest.raises(ValueError, match=rf"{name}\.offsets\.npy is damaged: it holds decreasing offsets"):
        type(original).open(tmp_path / "folder")


def test_open_refuses_other_folders(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "meta.json")  # opening a named pipe would block
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "pipe"):
        with pytest.raises(FileNotFoundError, match="is no session store"):
            SessionStore.open(folder)
    prepare({**LOG, "SessionId": [1] * 5}, tmp_path / "prepared")
    message = r"prepared is no session store: its meta\.json states .*prepared_log'; open .*prepared/train"
    with pytest.raises(ValueError, match=message):
        SessionStore.open(tmp_path / "prepared")


def test_folder_with_other_data_is_not_replaced(tmp_path: Path, store: SessionStore) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "meta.json").write_text('{"format": "love"}')
    for write in (store.save, lambda out: SessionStore.from_events(LOG, out=out)):
        with pytest.raises(FileExistsError, match="letters exists and holds no data written by gru4rec_fast"):
            write(tmp_path / "letters")
    assert [path.name for path in tmp_path.rglob("*")] == ["letters", "meta.json"]
    (tmp_path / "empty").mkdir()
    store.save(tmp_path / "empty")
    assert_same_store(SessionStore.open(tmp_path / "empty"), store)


LARGE_LOG = {"SessionId": np.arange(40_000) // 4, "ItemId": np.arange(40_000) % 999, "Time": np.arange(40_000)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "save": lambda out: SessionStore.from_arrays(LARGE_LOG["ItemId"], np.arange(0, 40_001, 4)).save(out),
    "from_events": lambda out: SessionStore.from_events(LARGE_LOG, out=out),
}


@contextmanager
def limit_files_to_20_kb() -> Iterator[None]:
    """Imitate a full disk: make writes beyond 20 kB fail, with EFBIG in place of ENOSPC.

    This is a context manager, not a fixture, because pytest itself writes longer files before it ends fixtures.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_leaves_the_earlier_store(tmp_path: Path, store: SessionStore, writer: str, in_batches: bool) -> None:
    store.save(tmp_path / "store")
    with (
        tiny_batches(batch_rows=20_000 if in_batches else 10**6),  # the log has 40,000 rows
        limit_files_to_20_kb(),
        pytest.raises(OSError, match="disk is full") as caught,
    ):
        WRITERS[writer](tmp_path / "store")
    assert str(tmp_path / "store") in str(caught.value) and caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert_same_store(SessionStore.open(tmp_path / "store"), store)


def test_full_disk_while_preparing_leaves_no_files(tmp_path: Path) -> None:
    message = r"disk is full .* while writing .*prepared: free some space"
    with limit_files_to_20_kb(), pytest.raises(OSError, match=message):
        prepare(LARGE_LOG, tmp_path / "prepared")
    assert not any(tmp_path.iterdir())


def test_full_disk_at_flush_keeps_a_store(tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.save(tmp_path / "store")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full.*store: free some space") as caught:
        store.save(tmp_path / "store")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert_same_store(SessionStore.open(tmp_path / "store"), store)


# A process that kills itself while it reads the log, when the progress function is called.
KILLED_WRITER = """
import os, signal, sys
from gru4rec_fast.data import SessionStore
def killed(rows): os.kill(os.getpid(), signal.SIGKILL)
SessionStore.from_events({"SessionId": [1, 1], "ItemId": [1, 2], "Time": [1, 2]}, out=sys.argv[1], progress=killed)
"""


def test_temporary_folders_of_killed_writers_are_removed(tmp_path: Path, store: SessionStore) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    writer = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert writer.returncode == -signal.SIGKILL
    (abandoned,) = tmp_path.iterdir()
    assert abandoned.name.startswith(".store.partial-") and any(abandoned.iterdir())
    store.save(tmp_path / "store2")  # must not remove temporary folders of another target
    assert abandoned.exists()
    with replace_folder(tmp_path / "store", lambda _: False) as temporary:
        assert not abandoned.exists()
        (temporary / "written").touch()
        store.save(tmp_path / "store.2")
        with replace_folder(tmp_path / "store", lambda _: False):
            assert (temporary / "written").exists()  # not removed, because this process still holds the folder's lock
        # The outer writer does not replace the inner writer's result, so that is removed first.
        shutil.rmtree(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.2", "store2"]
    assert (tmp_path / "store" / "written").exists()


def test_a_superseded_store_never_comes_back(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed when the new store is in its place, and before the earlier one is removed."""
    store.save(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        store.save(tmp_path / "store")
    assert [path.name.partition(".old-")[0] for path in sorted(tmp_path.iterdir())] == [".store", "store"]
    shutil.copytree(tmp_path, tmp_path / "copy")
    for folder in (tmp_path, tmp_path / "copy"):
        if folder != tmp_path:
            shutil.rmtree(folder / "store")
            with pytest.raises(FileNotFoundError):
                SessionStore.open(folder / "store")
            with pytest.raises(RuntimeError), replace_folder(folder / "store", lambda _: True):
                raise RuntimeError
            assert list(folder.glob(".store.old-*"))  # could be the only copy, if version 0.1 was killed
        with replace_folder(folder / "store", lambda _: True):
            pass
        assert not list(folder.glob(".store.old-*"))


def test_a_folder_that_cannot_be_replaced_is_an_error_before_the_log_is_read(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path / "store")
    (tmp_path / "new").mkdir()
    rename = os.rename

    def refuse_mount_point(source: Path, target: Path) -> None:
        if source == tmp_path / "store":
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    def save_to(folder: Path | str, reason: str) -> None:
        with pytest.raises(OSError, match=rf"cannot be replaced: it {reason}.*; choose another folder"):
            SessionStore.from_events(LARGE_LOG, out=folder, progress=lambda rows: pytest.fail("read the log"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse_mount_point)
        save_to(tmp_path / "store", r"cannot be renamed \(Device or resource busy\)")
    monkeypatch.chdir(tmp_path / "new")
    save_to(".", "is the current folder")
    monkeypatch.chdir(tmp_path / "store")
    save_to("../store", "is the current folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "store"]
    assert_same_store(SessionStore.open(tmp_path / "store"), store)


@pytest.mark.parametrize("stage", ["reading", "writing", "renaming"])
def test_interrupt_leaves_the_earlier_store(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    store.save(tmp_path / "store")
    progress = None
    if stage == "reading":
        progress = lambda rows: interrupt() if rows > 20_000 else None  # noqa: E731
    elif stage == "writing":
        monkeypatch.setattr("gru4rec_fast.data.array_folder.write_meta", interrupt)
    else:
        rename = os.rename
        monkeypatch.setattr(os, "rename", lambda a, b: interrupt() if ".partial" in str(a) else rename(a, b))
    with tiny_batches(10_000), pytest.raises(KeyboardInterrupt):
        SessionStore.from_events(LARGE_LOG, out=tmp_path / "store", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert_same_store(SessionStore.open(tmp_path / "store"), store)


def test_store_opens_without_polars(tmp_path: Path, store: SessionStore) -> None:
    store.save(tmp_path / "store")
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "from gru4rec_fast.data import SessionStore\n"
        "print(SessionStore.open(sys.argv[1]))\n"
        "try: SessionStore.from_events({})\n"
        "except ImportError as error: print(error)\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)  # so that the child process imports the same package
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout.splitlines() == [
        "SessionStore(3 sessions, 5 events, 3 items)",
        "reading a log needs polars: pip install polars (a prepared store opens without it)",
    ]


id_lists = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.lists(st.text(max_size=6), unique=True, min_size=1)
)


@given(ids=id_lists, data=st.data())
def test_vocabulary_finds_exactly_its_ids(ids: list[Any], data: st.DataObject) -> None:
    vocabulary = Vocabulary(ids)
    assert len(vocabulary) == len(ids) and vocabulary.ids.tolist() == ids
    any_id = st.text(max_size=6) if vocabulary.holds_strings else st.integers(-(2**63), 2**63 - 1)
    queries = data.draw(st.lists(st.one_of(any_id, st.sampled_from(ids)) if ids else any_id, max_size=30))
    expected = [ids.index(value) if value in ids else -1 for value in queries]
    index = vocabulary.index_of(queries)
    assert index.dtype == np.int64 and index.tolist() == expected
    arrays = vocabulary.to_arrays()
    assert all(array.dtype.kind in "iu" for array in arrays.values())
    assert Vocabulary.from_arrays(arrays) == vocabulary


@pytest.mark.parametrize("values", [["a", "b"], np.array(["a", "b"]), np.array(["a", "b"], object), iter(["a", "b"])])
def test_vocabulary_accepts_strings_in_any_container(values: Any) -> None:
    assert Vocabulary(values).index_of(["b", "c"]).tolist() == [1, -1]


def test_vocabulary_keeps_blanks_and_nul_characters() -> None:
    ids = ["", "\0", "a\0", "a", " a"]
    assert Vocabulary(ids).ids.tolist() == Vocabulary.from_arrays(Vocabulary(ids).to_arrays()).ids.tolist() == ids


def test_index_of_any_kind_takes_an_integer_and_its_digits_for_the_same_id() -> None:
    strings, integers = Vocabulary(["7", "x7", "007", "-1"]), Vocabulary([7, -1, 0])
    assert strings.index_of_any_kind([7, -1, 8]).tolist() == [0, 3, -1]
    assert strings.index_of_any_kind(["7", "007", "x"]).tolist() == [0, 2, -1]
    texts = ["7", "-1", "x7", "007", "+7", "7.0", "1_0", "-0", " 7", "", str(2**64)]
    assert integers.index_of_any_kind(texts).tolist() == [0, 1] + [-1] * 9
    assert integers.index_of_any_kind([]).tolist() == strings.index_of_any_kind([]).tolist() == []


def test_vocabulary_errors() -> None:
    with pytest.raises(ValueError, match="the id 7 occurs more than once"):
        Vocabulary([7, 8, 7])
    with pytest.raises(ValueError, match=r"not one of shape \(2, 2\)"):
        Vocabulary([[1, 2], [3, 4]])
    for mixture in ([1, "a"], [1.5, 2.0], [True, False], [None, "a"], np.array([1, "a"], object)):
        with pytest.raises(TypeError, match="vocabulary: "):
            Vocabulary(mixture)
    for ids in (np.array([2**63], np.uint64), [2**63], [2**70], np.array([2**70], object)):
        with pytest.raises(TypeError, match="must fit int64"):
            Vocabulary(ids)
    with pytest.raises(TypeError, match="holds strings as ids, but integers were given"):
        Vocabulary(["1"]).index_of([1])
    assert Vocabulary([1, 2]) != Vocabulary(["1", "2"]) and Vocabulary([1, 2]) != [1, 2]


def test_index_of_in_a_vocabulary_of_millions() -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(3_000_000)[:2_000_000] * 1000
    vocabulary = Vocabulary(ids)
    index = rng.integers(0, 2_000_000, 1_000_000)
    assert np.array_equal(vocabulary.index_of(ids[index]), index)
    assert (vocabulary.index_of(ids[index] + 1) == -1).all()
