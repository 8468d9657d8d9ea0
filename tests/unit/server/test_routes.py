"""The files of the page: which paths are served, and how browsers revalidate them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from musicgen_bento.server import routes
from musicgen_bento.server.routes import STATIC_HEADERS, PageFiles


def client_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(routes, "STATIC_FOLDER", folder)
    return TestClient(Starlette(routes=[Route("/app.js", PageFiles(), methods=["GET"], name="/app.js")]))


def test_etag_changes_with_the_content_even_if_size_and_time_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etags = []
    for content in ("let a = 1;", "let a = 2;"):
        (tmp_path / "app.js").write_text(content)
        os.utime(tmp_path / "app.js", (1_000_000_000, 1_000_000_000))
        etags.append(client_of(tmp_path, monkeypatch).get("/app.js").headers["etag"])
    assert etags[0] != etags[1]


def test_revalidation_responds_304_with_the_security_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.js").write_text("let a = 1;")
    client = client_of(tmp_path, monkeypatch)
    first = client.get("/app.js")
    assert (first.status_code, first.text) == (200, "let a = 1;")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    for response in (first, again):
        assert {name: response.headers.get(name) for name in STATIC_HEADERS} == STATIC_HEADERS
