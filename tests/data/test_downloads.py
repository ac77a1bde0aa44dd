"""Downloads against a local server: cut off anywhere, resumed or sent whole, checked, and never half a file."""

import hashlib
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lopjax.data.downloads import File, check_file, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CUT = 1_234_567


class Server:
    """Serves CONTENT. `cut`: how many bytes of an answer are sent before the line drops; `knows_ranges`."""

    def __init__(self, content: bytes = CONTENT, cut: int | None = None, knows_ranges: bool = True) -> None:
        self.content, self.cut, self.knows_ranges, self.asked = content, cut, knows_ranges, []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))

    @property
    def file(self) -> File:
        url = f"http://127.0.0.1:{self.http.server_port}/archive.zip"
        return File(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())

    def __enter__(self) -> "Server":
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.of = server
        super().__init__(*args)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.of.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.of.knows_ranges else 0
        body = self.of.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.of.content) - 1}/{len(self.of.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.of.cut])

    def log_message(self, *args: object) -> None:
        pass


def test_a_file_arrives_once_and_an_intact_one_is_used(tmp_path):
    with Server() as server:
        path = download(server.file, tmp_path)
        assert path.read_bytes() == CONTENT
        assert download(server.file, tmp_path) == path
        assert server.asked == [None]
    assert [file.name for file in tmp_path.iterdir()] == ["archive.zip"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on_or_starts_again(tmp_path, knows_ranges):
    with Server(cut=CUT, knows_ranges=knows_ranges) as server:
        with pytest.raises(ConnectionError, match=rf"{CUT:,} bytes are kept: the same command resumes"):
            download(server.file, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["archive.zip.part"]
        server.cut = None
        assert download(server.file, tmp_path).read_bytes() == CONTENT
        assert server.asked == [None, f"bytes={CUT}-"]


def test_half_a_file_of_another_version_is_noticed_and_thrown_away(tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(bytes(1000))
    with Server() as server:
        with pytest.raises(ValueError, match=r"SHA-256 [0-9a-f]{64} instead of"):
            download(server.file, tmp_path)
        assert not list(tmp_path.iterdir())
        assert download(server.file, tmp_path).read_bytes() == CONTENT


def test_what_is_not_the_published_file_gets_no_name(tmp_path):
    with Server(content=CONTENT[:-1] + b"!") as server, pytest.raises(ValueError, match="SHA-256"):
        download(server.file, tmp_path)
    longer = pytest.raises(ValueError, match="3,000,001 bytes instead of 3,000,000")
    with Server(content=CONTENT + b"!") as server, longer:
        download(server.file, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="it is published at http://"):
        check_file(tmp_path / "archive.zip", server.file)


def test_a_part_that_is_complete_needs_no_server(tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT)
    nowhere = File("http://127.0.0.1:9/archive.zip", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert download(nowhere, tmp_path).read_bytes() == CONTENT
    # The control: without it, there is no file.
    with pytest.raises(ConnectionError, match="--archive FILE"):
        download(nowhere, tmp_path / "empty")


def test_two_at_once_do_not_mix_their_bytes(tmp_path):
    import fcntl

    with (tmp_path / "archive.zip.part").open("ab") as other, Server() as server:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConnectionError, match="another process is downloading"):
            download(server.file, tmp_path)
        assert server.asked == []
