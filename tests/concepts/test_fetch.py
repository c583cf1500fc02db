"""Fetching: what a path or URI leads to, within limits of size and time; what can't be reached says why."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from PIL import Image

from tests.support.web import serve
from textinv_ray.concepts import fetch as fetching
from textinv_ray.concepts import images
from textinv_ray.concepts.fetch import MAX_IMAGE_BYTES, ImageError, LocalFiles, fetch, local_files
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest.kinds import ImageSource

CONFIG = DataConfig(download_retry_s=0)


def png() -> bytes:
    buffer = BytesIO()
    Image.radial_gradient("L").resize((20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    data = png()
    (tmp_path / "a b.png").write_bytes(data)
    return data


def test_local_images_relative_absolute_and_as_uri(tmp_path: Path, picture: bytes) -> None:
    base = str(tmp_path / "sub")
    for uri in ("../a b.png", str(tmp_path / "a b.png"), f"file://{tmp_path}/a b.png"):
        assert fetch(uri, base=base, config=CONFIG) == picture
    assert fetch({"bytes": None, "path": "../a b.png"}, base=base, config=CONFIG) == picture
    assert fetch({"bytes": picture, "path": None}, base=base, config=CONFIG) == picture


def test_remote_images_absolute_and_relative_to_a_remote_manifest(picture: bytes) -> None:
    fsspec.filesystem("memory").pipe("/pets/rex/1.png", picture)
    config = DataConfig(allowed_protocols=("memory",))
    assert fetch("memory://pets/rex/1.png", base="/", config=config) == picture
    assert fetch("rex/1.png", base="memory://pets", config=config) == picture
    assert fetch("../rex/1.png", base="memory://pets/x", config=config) == picture
    with pytest.raises(ImageError, match=r"^image memory://pets/none.png: doesn't exist$"):
        fetch("none.png", base="memory://pets", config=config)


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("/etc/hostname", "memory://pets"),
        ("file:///etc/hostname", "memory://pets"),
        ("FILE:///etc/hostname", "memory://pets"),
        ("local:///etc/hostname", "memory://pets"),
        ("../../../etc/hostname", "/tmp/x"),
        ("simplecache::file:///etc/hostname", "memory://pets"),
        ("memory::file:///etc/hostname", "memory://pets"),
        ("ftp://host/x.png", "memory://pets"),
    ],
)
def test_protocols_that_are_not_allowed(uri: str, base: str) -> None:
    with pytest.raises(ImageError, match=r"not among data.allowed_protocols|chained"):
        fetch(uri, base=base, config=DataConfig(allowed_protocols=("memory",)))


@pytest.mark.parametrize(("uri", "reason"), [("none.png", "doesn't exist"), (".", "is a folder")])
def test_local_images_that_are_not_there(tmp_path: Path, uri: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        fetch(uri, base=str(tmp_path), config=CONFIG)


def test_devices_are_not_read() -> None:
    with pytest.raises(ImageError, match="is not a regular file"):
        fetch("/dev/zero", base="/", config=CONFIG)


def test_endless_images_are_cut_off(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match="is larger than 256 MiB"):
        fetch("large.png", base=str(tmp_path), config=CONFIG)


def test_a_slow_source_is_given_up() -> None:
    ended = threading.Event()

    def answer(path: str) -> tuple[int, bytes]:
        ended.wait(60)
        return 200, b""

    config = DataConfig(download_timeout_s=0.1, download_retry_s=0)
    with serve(answer) as host:
        with pytest.raises(ImageError, match=r"didn't arrive within 0.1 s"):
            fetch(f"http://{host}/x.png", base="/", config=config)
        ended.set()


def test_images_from_the_web() -> None:
    """The server has /a.png, and answers other paths with the status that they name."""

    def answer(path: str) -> tuple[int, bytes]:
        status = 200 if path.startswith("/a.png") else int(path.strip("/").split("?")[0])
        return status, png()

    with serve(answer) as host:
        uri = f"http://me:SECRET@{host}/a.png?sig=SECRET"
        prepared = images.prepare([uri], base="/", config=CONFIG, resolution=8, seed=0)
        assert prepared.uris == (f"http://{host}/a.png",)
        for status in (403, 404, 500):
            with pytest.raises(ImageError) as error:
                fetch(f"http://me:SECRET@{host}/{status}?sig=SECRET", base="/", config=CONFIG)
            assert str(error.value) == f"image http://{host}/{status}: HTTP status {status}"
    with pytest.raises(ImageError, match=r"^image http://127.0.0.1:9/x: .*Connect"):
        fetch("http://127.0.0.1:9/x", base="/", config=CONFIG)


def test_a_server_that_is_busy_is_asked_again(picture: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Throttled and broken for a while; what is forbidden is not asked for twice."""
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 403 if path == "/no.png" else {1: 503, 2: 429}.get(len(asked), 200), picture

    config = DataConfig(download_retry_s=20)
    with serve(answer) as host:
        assert fetch(f"http://{host}/a.png", base="/", config=config) == picture
        assert caplog.text.count("trying again") == 2
        with pytest.raises(ImageError, match="403"):
            fetch(f"http://{host}/no.png", base="/", config=config)
        assert caplog.text.count("trying again") == 2


class Unreachable(AbstractFileSystem):
    """A store whose errors quote the whole URI, as those of many libraries do."""

    protocol = "unreachable"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        raise OSError(f"could not reach {path}")


def test_errors_of_libraries_are_cleaned() -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    config = DataConfig(allowed_protocols=("unreachable",), download_retry_s=0)
    with pytest.raises(ImageError) as error:
        fetch("unreachable://me:SECRET@host/x.png?sig=SECRET", base="/", config=config)
    shown = "unreachable://host/x.png"
    assert str(error.value) == f"image {shown}: could not reach {shown}"


def test_local_files_are_known_without_reading_them(tmp_path: Path) -> None:
    """By size and time of change, those that lie beside the manifest or anywhere else on this machine."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"one")
    uris: list[ImageSource] = ["a.png", f"file://{tmp_path}/b.png", "s3://bucket/c.png", {"bytes": b"x"}]
    before = local_files(uris, str(tmp_path))
    assert before == local_files(uris[:2], str(tmp_path))
    assert before.missing == ()
    (tmp_path / "a.png").write_bytes(b"another")
    assert local_files(uris, str(tmp_path)).mtime_digest != before.mtime_digest
    (tmp_path / "a.png").write_bytes(b"one")
    os.utime(tmp_path / "a.png", ns=(0, 0))
    assert local_files(uris, str(tmp_path)).mtime_digest != before.mtime_digest
    (tmp_path / "b.png").unlink()
    assert local_files(uris, str(tmp_path)).missing == (str(tmp_path / "b.png"),)
    assert local_files(uris[2:], str(tmp_path)) == LocalFiles("", ())
    assert local_files(["a.png"], "s3://bucket/data").mtime_digest == ""


@pytest.mark.parametrize(
    "name", ["my pet.png", "100%.png", "a%20b.png", "кошка.png", "a#b?c.png", os.fsdecode(b"\xff.png")]
)
def test_every_name_is_found_as_a_path_and_as_a_uri(tmp_path: Path, name: str) -> None:
    """`Path.as_uri`, Spark and browsers encode names; plain paths are what they are."""
    path = tmp_path / name
    path.write_bytes(png())
    for uri in (name, str(path), path.as_uri(), path.as_uri().replace("file://", "file:")):
        assert fetch(uri, base=str(tmp_path), config=CONFIG) == png()


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(png())
    assert fetch("~/a.png", base="/elsewhere", config=CONFIG) == png()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file://data/x.png", "file: URIs name an absolute path"),
        ("file:x.png", "file: URIs name an absolute path"),
        ("data:image/png;base64,SECRET", "data: URIs aren't read; give the image's bytes"),
    ],
)
def test_uris_that_lead_nowhere(tmp_path: Path, uri: str, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(png())
    with pytest.raises(ImageError, match=reason) as error:
        fetch(uri, base=str(tmp_path), config=CONFIG)
    assert "SECRET" not in str(error.value)
    assert local_files([uri], str(tmp_path)) == LocalFiles("", ())


@pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/zero", "/dev/null", "/dev/tty", "folder"])
def test_only_regular_files_are_read_and_nothing_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"is not a regular file|is a folder|[Nn]o such device"):
        fetch("x.png", base=str(tmp_path), config=DataConfig(download_timeout_s=30))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("base", ["/pets", "https://host/pets", "s3://bucket/pets"])
def test_signatures_of_relative_images_are_not_shown(base: str) -> None:
    assert fetching.name("rex/ok.png?sig=SECRET&x=1", 0, base) == "rex/ok.png"
    if "://" in base:
        assert fetching.name("rex/ok.png?SECRET", 0, base) == "rex/ok.png"
    config = DataConfig(allowed_protocols=("file",))
    with pytest.raises(ImageError) as error:
        fetch("rex/none.png?sig=SECRET", base=base, config=config)
    assert "SECRET" not in str(error.value)


def test_files_that_are_missing_are_named_without_their_signature() -> None:
    assert local_files(["none.png?sig=SECRET"], "/pets").missing == ("/pets/none.png",)


def test_a_signed_file_beside_the_manifest_is_named_without_its_signature(tmp_path: Path) -> None:
    (tmp_path / "ok.png?sig=SECRET").write_bytes(png())  # as wget saves it
    prepared = images.prepare(["ok.png?sig=SECRET"], base=str(tmp_path), config=CONFIG, resolution=8, seed=0)
    assert prepared.uris == ("ok.png",)


def drip(connection: socket.socket) -> None:
    """Sends headers, and then a byte now and then for as long as the client listens."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)
    except OSError:
        connection.close()


@pytest.fixture
def dripping_host() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_limit_holds_for_the_whole_of_a_fetch(dripping_host: str) -> None:
    config = DataConfig(download_timeout_s=0.5, download_retry_s=0)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"didn't arrive within 0.5 s \(data.download_timeout_s\)") as error:
        fetch(f"http://{dripping_host}/x.png", base="/", config=config)
    assert time.monotonic() - started < 5
    assert not error.value.is_transient


def test_a_slow_host_does_not_hold_up_others(dripping_host: str) -> None:
    """Only a few fetches at a time go to one host, which those of others don't wait for."""
    config = DataConfig(download_timeout_s=2, download_retry_s=0)

    def is_refused(number: int) -> bool:
        try:
            fetch(f"http://{dripping_host}/{number}.png", base="/", config=config)
        except ImageError:
            return True
        return False

    with serve(lambda path: (200, png())) as host, ThreadPoolExecutor(9) as pool:
        started = time.monotonic()
        slow = [pool.submit(is_refused, number) for number in range(8)]
        assert pool.submit(fetch, f"http://{host}/a.png", base="/", config=config).result() == png()
        assert time.monotonic() - started < 2
        assert all(future.result() for future in slow)
        assert 4 <= time.monotonic() - started < 8  # in two rounds of four


def test_a_first_try_is_short_and_says_whether_another_may_succeed(
    dripping_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FIRST_TRY_S", 0.3)
    patient = DataConfig(download_timeout_s=30, download_retry_s=30)
    may_pass = {
        f"http://{dripping_host}/x.png": True,
        "http://127.0.0.1:9/x.png": True,
        "/none.png": False,
    }
    for uri, expected in may_pass.items():
        with pytest.raises(ImageError) as error:
            fetch(uri, base="/", config=patient, is_first_try=True)
        assert error.value.is_transient == expected
    with pytest.raises(ImageError) as error:
        fetch("http://127.0.0.1:9/x.png", base="/", config=CONFIG, is_first_try=True)
    assert not error.value.is_transient
