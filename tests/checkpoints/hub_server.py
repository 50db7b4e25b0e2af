"""A small Hugging Face hub on loopback: models of commits of files, and a log of what was asked."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote


@dataclass
class Model:
    """branches: name -> commit. commits: commit -> relative name -> content."""

    branches: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    gated: bool = False


@dataclass
class Hub:
    """url: for HF_ENDPOINT. log: "GET path" and "HEAD path". tokens: what came as authorization."""

    url: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    broken: bool = False

    def fetched(self) -> list[str]:
        """The names of the files whose content was sent, and forget the log."""
        names = [
            line.partition("/resolve/")[2].partition("/")[2]
            for line in self.log
            if line.startswith("GET") and "/resolve/" in line
        ]
        self.log.clear()
        return sorted(names)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            hub.log.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("authorization"))
            status, headers, body = _respond(hub, unquote(self.path.partition("?")[0]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    if hub.broken:
        return 503, {}, b""
    if path.startswith("/api/models/"):
        name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        file = None
    else:
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
    model = hub.models.get(name)
    if model is None:
        return 401, {"X-Error-Code": "RepoNotFound"}, b""
    revision = revision or "main"
    commit = model.branches.get(revision, revision)
    if commit not in model.commits:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    files = model.commits[commit]
    if file is None:
        siblings = [{"rfilename": each} for each in files]
        body = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        return 200, {"Content-Type": "application/json"}, body
    if model.gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit}, b""
    if file not in files:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
    etag = hashlib.sha256(files[file]).hexdigest()
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, files[file]
