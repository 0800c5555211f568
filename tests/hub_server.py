"""A server on the loopback that speaks the hub's protocol: what a repository is, its files, parts of them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories, and what was asked; a test changes them while the server runs."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "user/name" at a commit → its files
    revisions: dict[str, str] = field(default_factory=dict)  # "user/name@branch" → commit
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # "user/name" → status, X-Error-Code
    token: str | None = None  # what a request must carry
    cut_after: int | None = None  # bytes of a body after which the connection breaks
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range

    def put(self, repository: str, commit: str, files: dict[str, bytes], *revisions: str) -> None:
        """Store files at a commit, to which branches and tags point."""
        self.files[f"{repository}@{commit}"] = files
        self.revisions |= {f"{repository}@{name}": commit for name in (commit, *revisions)}

    def fetched(self) -> list[str]:
        """The files that were sent, by name."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at its `url` while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, hub)

        def do_HEAD(self) -> None:
            answer(self, hub)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    """Answer one request as the hub would."""
    path = unquote(urlsplit(request.path).path)
    hub.asked.append((request.command, path, request.headers.get("Range")))
    found = re.fullmatch(r"/(?:api/models/)?(\w[\w.-]*/\w[\w.-]*)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
    if found is None:
        return send(request, 404, code="EntryNotFound")
    repository, kind, revision, name = found[1], found[2] or "revision", found[3] or "main", found[4]
    if repository in hub.refusals:
        status, code = hub.refusals[repository]
        return send(request, status, code=code)
    if hub.token is not None and request.headers.get("Authorization") != f"Bearer {hub.token}":
        return send(request, 401, code="RepoNotFound")
    if not any(key.startswith(f"{repository}@") for key in hub.files):
        return send(request, 404, code="RepoNotFound")
    commit = hub.revisions.get(f"{repository}@{revision}")
    if commit is None:
        return send(request, 404, code="RevisionNotFound")
    files = hub.files[f"{repository}@{commit}"]
    if kind == "revision":
        return send(request, body={"id": repository, "sha": commit, "siblings": [{"rfilename": one} for one in files]})
    if kind == "tree":
        rows = [{"type": "file", "path": one, "size": len(data), "oid": etag(data)} for one, data in files.items()]
        return send(request, body=rows)
    if name not in files:
        return send(request, 404, code="EntryNotFound")
    return send(request, body=files[name], commit=commit, cut_after=hub.cut_after)


def etag(data: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def send(
    request: BaseHTTPRequestHandler,
    status: int = 200,
    *,
    body: Any = b"",
    code: str = "",
    commit: str = "",
    cut_after: int | None = None,
) -> None:
    """Send a body of bytes or JSON, the part that a Range asks for, or the first bytes of it."""
    data: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(data)}"'} if commit else {}
    if code:
        headers["X-Error-Code"] = code
    if asked := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
        start = int(asked[1])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        status, data = 206, data[start:]
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    if cut_after is not None and cut_after < len(data):
        request.wfile.write(data[:cut_after])
        request.close_connection = True
        return
    request.wfile.write(data)
