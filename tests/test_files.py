"""Files are complete or not there; damaged ones are named."""

import errno
import json
import os

import numpy as np
import pytest

from minires.arrays.files import (
    complete,
    content_of,
    load_arrays,
    load_json,
    save_arrays,
    save_json,
)


def test_arrays_come_back_as_they_were(tmp_path, rng):
    arrays = {"a": rng.standard_normal((3, 4)).astype(np.float32), "b": np.arange(5), "c": np.e}
    save_arrays(tmp_path / "x.npz", **arrays)
    loaded = load_arrays(tmp_path / "x.npz", "a", "b")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == np.asarray(array).dtype
    assert os.listdir(tmp_path) == ["x.npz"]


def test_json_comes_back_as_it_was(tmp_path):
    content = {"ℓ": [1, 0.1, None], "x": {"y": True}}
    save_json(tmp_path / "x.json", content)
    assert load_json(tmp_path / "x.json") == content
    assert "ℓ" in (tmp_path / "x.json").read_text("utf-8")
    assert (tmp_path / "x.json").read_text("utf-8").endswith("}\n")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail_halfway():
        with complete(path, "w") as file:
            file.write("new")
            file.flush()
            assert path.read_text() == "old"
            assert len(os.listdir(tmp_path)) == 2
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]
    with complete(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("80 requested and 8 written")],
    ids=["of Python", "of NumPy"],
)
def test_a_full_disk_names_the_file(tmp_path, error):
    with (
        pytest.raises(OSError, match=rf"x\.npz: {error.strerror or error}: make room, and run"),
        complete(tmp_path / "x.npz"),
    ):
        raise error
    assert os.listdir(tmp_path) == []
    broken = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match=r"error: '.*x\.npz'$"), complete(tmp_path / "x.npz"):
        raise broken
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "y.txt")
    with pytest.raises(FileNotFoundError, match=r"directory: 'y\.txt'$"), complete(tmp_path / "x"):
        raise missing


def test_it_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    save_json(tmp_path / "x.json", {})
    assert order == ["fsync", "replace"]


def test_arrays_that_need_pickle_are_refused(tmp_path):
    with pytest.raises(TypeError, match="a holds Python objects"):
        save_arrays(tmp_path / "x.npz", a=np.array([{}]))
    assert os.listdir(tmp_path) == []
    np.savez(tmp_path / "evil.npz", a=np.array([{}]))
    with pytest.raises(ValueError, match=r"evil\.npz is damaged or not an \.npz file of plain"):
        load_arrays(tmp_path / "evil.npz")


def test_damaged_files_are_named(tmp_path, rng):
    path = tmp_path / "x.npz"
    save_arrays(path, a=rng.standard_normal(1000))
    whole = path.read_bytes()
    for damaged in (whole[:-500], whole[: len(whole) // 2], b"", b"PK\x03\x04", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz is damaged"):
            load_arrays(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        load_arrays(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"x\.npz lacks theta, stats"):
        load_arrays(path, "theta", "a", "stats")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("error", [KeyError("theta"), TypeError("n"), FloatingPointError("inf")])
def test_what_its_content_leads_to_names_the_file(error):
    expected = rf"^x\.npz is damaged \({type(error).__name__}: .*\): remove it$"
    with pytest.raises(ValueError, match=expected) as told, content_of("x.npz", "remove it"):
        raise error
    assert told.value.__cause__ is error
    with pytest.raises(ValueError, match=r"^x is damaged \(ValueError: \\x1b\)$"), content_of("x"):
        raise ValueError("\x1b")
    with pytest.raises(OSError, match="disk"), content_of("x"):  # no fault of the content
        raise OSError("disk")


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    for text in ("", "{", json.dumps({"a": 1})[:-1]):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is not a JSON file"):
            load_json(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"x\.json is not a JSON file"):
        load_json(path)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    """What is compressed, or says that it is larger than the file, is refused unread."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(30_000_000, np.uint8))
    assert path.stat().st_size < 1e5
    with pytest.raises(ValueError, match=r"x\.npz is damaged .*larger than the file"):
        load_arrays(path)
    save_arrays(path, a=np.zeros(1000))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(1000,)", b"(9**9,)"))
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        load_arrays(path)
    path.write_bytes(content.replace(b"(1000,)", b"(9000,)"))
    with pytest.raises(ValueError, match=r"a\.npy is not the array that it says it is"):
        load_arrays(path)


def test_arrays_are_those_that_are_expected(tmp_path):
    path = tmp_path / "x.npz"
    single = np.array([1, 2], np.float32)
    kinds = {"text": np.array(["1", "2"]), "days": single.astype("M8[D]"), "wide": single * 1.0}
    kinds |= {"whole": np.array([1, 2]), "complex": single.astype("c8")}
    kinds["wide"] = kinds["wide"].astype(np.float64)
    save_arrays(path, theta=single, bad=single * np.float32(np.nan), **kinds)
    assert load_arrays(path, shapes={"theta": (2,)})["theta"][1] == 2
    with pytest.raises(ValueError, match=r"x\.npz: theta is \(2,\), expected \(3,\)"):
        load_arrays(path, shapes={"theta": (3,)})
    with pytest.raises(ValueError, match=r"x\.npz: bad has values that are infinite"):
        load_arrays(path, shapes={"bad": (2,)})
    for name, array in kinds.items():
        with pytest.raises(ValueError, match=rf"x\.npz: {name} is .*expected float32") as error:
            load_arrays(path, shapes={name: (2,)})
        assert str(array.dtype) in str(error.value)
    with pytest.raises(ValueError, match=r"x\.npz lacks stats"):
        load_arrays(path, shapes={"stats": (2,)})


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="Out of range"):
        save_json(path, {"a": float("nan")})
    assert os.listdir(tmp_path) == []
    path.write_text('{"a": NaN}')
    with pytest.raises(ValueError, match=r"x\.json is not a JSON file: it holds NaN"):
        load_json(path)


def test_text_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "x.npz"
    for numbers in ([0x7FFFFFFF], [0x41, 0x110000, 0x42], [0x41, 0x20000, 0xFFFFFFFF]):
        np.savez(path, name=np.array(numbers, np.uint32).view(f"U{len(numbers)}"))
        with pytest.raises(ValueError, match=r"x\.npz is damaged"):
            load_arrays(path)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.npz: there is no folder .*new: make it first"):
        save_arrays(tmp_path / "new" / "x.npz", a=np.zeros(3))
