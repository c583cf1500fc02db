"""What nobody may see and what nobody may reach: credentials, folders beside the output, local files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import examples
from tests.support.commands import LOCAL_RAY, as_options, finished, script, textinv
from tests.support.network import free_ports
from textinv_ray.concepts import fetch
from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.store import Store

MARK = "Mark3dSecret"  # with a number after it, for each place a secret can be
SERVER = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=lambda *_: print("ready", flush=True))
"""


# Folders


@settings(deadline=None)
@given(concept_id=st.text(max_size=40) | st.text("./\\-_a\n", max_size=12))
def test_ids_stay_inside_the_store(concept_id: str) -> None:
    """Whatever an id is, it is refused or names a folder of its own in concepts/."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/out")
        try:
            store.write_concept(concept_id, "result.json", b"{}")
            examples.fail(store, concept_id, "x", time=0.0)
        except ValueError:
            pass
        found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
        assert found in (
            set(),
            {f"out/concepts/{concept_id}/result.json", f"out/failed/{concept_id}.json"},
        )
        if found:
            assert Path(f"{folder}/out/concepts/{concept_id}").resolve().parent.name == "concepts"


# Local files

SCHEMES = (
    *("", "/", "./", "../", "file:", "file:/", "file://", "file:///", "FILE://", "File:///", "local://"),
    "file://localhost",
    "simplecache::",
    "simplecache::file://",
    "filecache::file://",
    "dir://::file://",
    "zip://x::",
    "https://x::file://",
    "s3://b/x::file://",
    "reference://",
    "root://",
    "memory://",
    "\tfile://",
)


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "secret.png"
    path.write_bytes(examples.png())
    return path


@settings(deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES) | st.text("file:/.lhosx\\ %", max_size=9),
    base=st.sampled_from(("", "/", "https://example.invalid/a", "s3://bucket/a")),
    as_struct=st.booleans(),
    strip=st.booleans(),
)
def test_no_local_file_where_they_are_forbidden(
    secret_file: Path, scheme: str, base: str, as_struct: bool, strip: bool
) -> None:
    """Whatever way a row has of naming it. The manifest itself may be local."""
    config = JobConfig.load("mini", ["data.allowed_protocols=[memory]", "data.download_timeout_s=1"]).data
    uri = scheme + (str(secret_file).lstrip("/") if strip else str(secret_file))
    with pytest.raises(fetch.ImageError):
        fetch.fetch(
            {"bytes": None, "path": uri} if as_struct else uri,
            base=base or str(secret_file.parent),
            config=config,
        )


def test_where_they_are_allowed_it_is_read(secret_file: Path) -> None:
    """So that the test above can fail."""
    config = JobConfig.load("mini", []).data
    assert fetch.fetch(str(secret_file), base="/", config=config) == secret_file.read_bytes()


# Credentials


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(a folder, host and port where a web server offers it)."""
    folder = tmp_path / "site"
    folder.mkdir()
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield folder, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def holding(folder: Path) -> dict[str, list[str]]:
    """Marked secrets found in the files below a folder -> the files."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            for number in range(10):
                if f"{MARK}{number}".encode() in data:
                    found.setdefault(f"{MARK}{number}", []).append(str(path.relative_to(folder)))
    return found


@pytest.mark.slow
def test_credentials_appear_nowhere(
    website: tuple[Path, str],
    tmp_path: Path,
    tiny_sd: Path,
    tiny_clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In URIs of manifest, images and MLflow, and in the environment; looked for in everything that is written."""
    site, host = website

    def signed(name: str, number: int) -> str:
        return f"http://me:{MARK}{number}@{host}/{name}?signature={MARK}{number + 1}"

    names = [f"c{index}-{number}.png" for index in range(2) for number in range(3)]
    examples.write_manifest(
        site,
        3,
        {
            "c0": {"images": [signed(name, 0) for name in names[:3]]},
            "c1": {"images": [signed(name, 0) for name in names[3:]]},
            "c2": {"images": [signed("none.png", 0)]},
        },
    )
    out, ray = tmp_path / "out", Path(tempfile.mkdtemp(prefix="ts", dir="/tmp"))
    options = as_options(examples.settings(tiny_sd, tiny_clip, "service.workers=1"))
    job = finished(
        script("invert_many", signed("manifest.parquet", 2), "-o", str(out), "--verbose", *options),
        environment={
            **LOCAL_RAY,
            "RAY_TMPDIR": str(ray),
            "MLFLOW_TRACKING_URI": f"http://me:{MARK}4@127.0.0.1:9/?token={MARK}5",
            "MLFLOW_TRACKING_PASSWORD": f"{MARK}6",
            "AWS_SECRET_ACCESS_KEY": f"{MARK}7",
            "HF_TOKEN": f"{MARK}8",
        },
    )
    said = job.stdout + job.stderr
    assert job.returncode == 1, said
    assert "2 of 3 concepts learned" in said
    assert "none.png: HTTP status 404" in said
    assert "MLflow can't be written to for now" in said
    assert textinv("track", str(out), "--tracking-uri", f"sqlite:///{out}/mlflow.db") == 0
    assert textinv("status", str(out)) == 0
    assert textinv("status", str(out), "--json") == 0
    said += "".join(capsys.readouterr())
    assert MARK not in said
    assert holding(out) == {}
    assert any(path.suffix == ".log" for path in ray.rglob("*")), "Ray's logs are where they are looked for"
    assert holding(ray) == {}
