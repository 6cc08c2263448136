"""Downloading MNIST, from servers on this very computer: what arrives is right, or nothing is."""

import functools
import gzip
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from minires.data import mnist

pytest.importorskip("pooch", reason="pooch is not installed: nothing can be downloaded")


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers from a dict; remembers what it was asked."""

    def __init__(self, answers, asked, *arguments):
        self.answers, self.asked = answers, asked
        super().__init__(*arguments)

    def do_GET(self):
        self.asked.append(self.path.rsplit("/", 1)[-1])
        answer = self.answers.get(self.asked[-1])
        if answer is None:
            self.send_error(404)
            return
        content, promised = answer
        self.send_response(200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Ask this computer directly, whatever proxy it is set up with."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve():
    """Start a mirror: serve({file name: content, or (content, promised length)})."""
    servers = []

    def start(files):
        answers = {
            name: each if isinstance(each, tuple) else (each, len(each))
            for name, each in files.items()
        }
        asked = []
        handler = functools.partial(Mirror, answers, asked)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/mnist/", asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def refusing():
    """The address of a mirror that accepts no connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/mnist/"


@pytest.fixture
def originals(monkeypatch):
    """Four small files that stand for the originals: {file name: packed content}."""
    rng = np.random.default_rng(0)
    packed, digests = {}, {}
    for name, count in zip(mnist.FILES, (5, 5, 3, 3), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        content = header + rng.integers(10, size=shape, dtype=np.uint8).tobytes()
        packed[f"{name}.gz"] = gzip.compress(content, mtime=0)
        digests[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist, "FILES", digests)
    return packed


IMAGES = "train-images-idx3-ubyte.gz"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_four_files_arrive_and_are_not_fetched_twice(tmp_path, serve, originals):
    url, asked = serve(originals)
    paths = mnist.download(tmp_path / "a" / "b", [url], progress=False)
    assert [path.name for path in paths] == list(originals)
    assert names_in(tmp_path / "a" / "b") == sorted(originals)
    for path in paths:
        assert path.read_bytes() == originals[path.name]
    assert asked == list(originals)
    assert mnist.download(tmp_path / "a" / "b", [url], progress=False) == paths
    assert len(asked) == 4


def test_a_broken_off_download_is_completed(tmp_path, serve, originals):
    files = dict(originals)
    last = files.popitem()
    url, _ = serve(files)
    with pytest.raises(ConnectionError, match=r"no mirror delivered t10k-labels-idx1-ubyte\.gz"):
        mnist.download(tmp_path, [url], progress=False)
    assert names_in(tmp_path) == sorted(files)
    url, asked = serve(originals)
    mnist.download(tmp_path, [url], progress=False)
    assert asked == [last[0]]


def other_content(packed):
    content = bytearray(gzip.decompress(packed))
    content[-1] ^= 1
    return gzip.compress(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda packed: None, "404"),
        (other_content, "SHA-256"),
        (lambda packed: packed[:-20], "cannot be unpacked"),
        (lambda packed: (packed[:-20], len(packed)), "IncompleteRead|Connection broken"),
        (lambda packed: b"<html>please log in</html>", "starts with the bytes 3c 68 74 6d"),
        (lambda packed: b"", "starts with the bytes"),
    ],
    ids=["missing", "other content", "cut", "connection lost", "a web page", "empty"],
)
def test_what_is_wrong_never_arrives_and_the_next_mirror_takes_over(
    tmp_path, serve, originals, spoil, reason
):
    spoiled = spoil(originals[IMAGES])
    files = {**originals, IMAGES: spoiled} if spoiled is not None else dict(originals)
    if spoiled is None:
        del files[IMAGES]
    bad, bad_asked = serve(files)
    with pytest.raises(ConnectionError, match=reason) as caught:
        mnist.download(tmp_path, [bad], progress=False)
    assert f"{bad}{IMAGES}: " in str(caught.value)
    assert names_in(tmp_path) == []

    good, good_asked = serve(originals)
    bad_asked.clear()
    paths = mnist.download(tmp_path, [bad, good], progress=False)
    assert [path.read_bytes() for path in paths] == list(originals.values())
    # The mirror that failed once is left alone while the other one delivers.
    assert bad_asked == [IMAGES]
    assert good_asked == list(originals)


def test_a_mirror_that_refuses_is_passed_over(tmp_path, serve, originals, refusing):
    good, asked = serve(originals)
    mnist.download(tmp_path, [refusing, good], progress=False)
    assert asked == list(originals)


def test_when_no_mirror_delivers_the_error_lists_each_and_the_remedy(
    tmp_path, serve, originals, refusing
):
    empty, _ = serve({})
    with pytest.raises(ConnectionError) as caught:
        mnist.download(tmp_path, [refusing, empty], progress=False)
    message = str(caught.value)
    assert f"{refusing}{IMAGES}: " in message
    assert f"{empty}{IMAGES}: 404" in message
    assert "--data-dir FOLDER" in message
    assert "MINIRES_DATA" in message
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("progress", [True, False])
def test_progress_goes_to_standard_error_and_only_when_wanted(
    tmp_path, serve, originals, capfd, progress
):
    url, _ = serve(originals)
    mnist.download(tmp_path, [url], progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("100%" in err) == progress
    assert progress or err == ""


def test_load_downloads_into_the_cache_and_reads_it_from_there(
    tmp_path, monkeypatch, serve, originals
):
    url, asked = serve(originals)
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist, "MIRRORS", (url,))
    first = mnist.load(progress=False)
    assert first.name == "MNIST"
    assert len(first.train_labels) == 5
    assert names_in(tmp_path / "mnist") == sorted(originals)
    second = mnist.load(progress=False)
    assert len(asked) == 4
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_there_are_two_mirrors_at_least_and_their_addresses_end_in_a_slash():
    assert len(mnist.MIRRORS) >= 2
    assert all(url.startswith("https://") and url.endswith("/") for url in mnist.MIRRORS)
