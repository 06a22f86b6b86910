"""A hub of our own on 127.0.0.1: it answers what the hubs' clients ask, and remembers what that was."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


class FakeHub(ThreadingHTTPServer):
    """Serves folders as repositories of a hub: `main` (or `master`) and COMMIT are one revision of each."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated: set[str] = set()
        self.fetched: Counter[str] = Counter()
        """File by file, how often its content was sent."""
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a program needs to take this for the Hugging Face Hub, its cache in `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[FakeHub]:
    """A running hub."""
    hub = FakeHub(repositories)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        url = urlparse(self.path)
        match url.path.strip("/").split("/"):
            case ["api", "models", owner, name, "revision", revision]:
                self._hugging_face(f"{owner}/{name}", revision, self._info)
            case ["api", "models", owner, name, "tree", revision]:
                self._hugging_face(f"{owner}/{name}", revision, self._tree)
            case [owner, name, "resolve", revision, *file]:
                self._hugging_face(f"{owner}/{name}", revision, self._content, "/".join(file))
            case ["api", "v1", "models", owner, name, "repo", *rest]:
                self._modelscope(f"{owner}/{name}", parse_qs(url.query), is_list=bool(rest))
            case _:
                self._send(404)

    def _hugging_face(self, name: str, revision: str, answer: object, *words: str) -> None:
        if name not in self.server.repositories:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
        elif name in self.server.gated:
            self._send(403, {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", COMMIT):
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            answer(name, *words)  # type: ignore[operator]

    def _info(self, name: str) -> None:
        files = [{"rfilename": path} for path in self._files(name)]
        self._send_json({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []})

    def _tree(self, name: str) -> None:
        found = self._files(name).items()
        self._send_json(
            [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": _digest(file)[:40]}
                for path, file in found
            ]
        )

    def _content(self, name: str, path: str) -> None:
        file = self._files(name)[path]
        if self.command == "GET":
            self.server.fetched[path] += 1
        self._send(200, {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes())

    def _modelscope(self, name: str, query: dict[str, list[str]], *, is_list: bool) -> None:
        if name not in self.server.repositories or query["Revision"][0] != "master":
            self._send(404)
        elif is_list:
            files = [
                {
                    "Path": path,
                    "Name": path,
                    "Type": "blob",
                    "Size": file.stat().st_size,
                    "Sha256": _digest(file),
                }
                for path, file in self._files(name).items()
            ]
            self._send_json({"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            self._content(name, query["FilePath"][0])

    def _files(self, name: str) -> dict[str, Path]:
        folder = self.server.repositories[name]
        return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def _send_json(self, content: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
