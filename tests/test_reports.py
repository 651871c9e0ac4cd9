"""Reports in the browser: those of DVC's cache, and nothing else that lies there."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from served import free_port

from flows.serving.reports import serving_reports

PAGE = "ab" + "c" * 30
OTHER = "de" + "f" * 30


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    for name, content in ((PAGE, "<!doctype html>\n<title>Mine</title>"), (OTHER, "secret")):
        path = tmp_path / "files/md5" / name[:2] / name[2:]
        path.parent.mkdir(parents=True)
        path.write_text(content)
    port = free_port()
    with serving_reports(tmp_path, port):
        yield f"http://127.0.0.1:{port}"


def read(url: str, **headers: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        return str(answer.read().decode())


def test_a_report_is_shown_by_its_hash(address: str) -> None:
    assert "<title>Mine</title>" in read(f"{address}/{PAGE}/report.html")


@pytest.mark.parametrize(
    "path",
    [
        f"/{OTHER}/report.html",
        f"/{PAGE}/other.html",
        f"/{'0' * 32}/report.html",
        "/../../etc/passwd",
        f"/{PAGE[:2]}/../{PAGE[:2]}/{PAGE[2:]}/report.html",
        "/",
    ],
)
def test_nothing_else_is(address: str, path: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        read(address + path)


def test_a_page_elsewhere_that_takes_this_address_for_its_own_gets_nothing(address: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        read(f"{address}/{PAGE}/report.html", Host="evil.example")


def test_a_report_that_left_the_cache_is_told(address: str) -> None:
    with pytest.raises(HTTPError) as error:
        read(f"{address}/{'0' * 32}/report.html")
    assert "run the stage `report` again" in error.value.read().decode()
