# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub of one process on the loopback interface: what pushing and pulling a file asks for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 39 + "1"


class Stub(ThreadingHTTPServer):
    """``files`` are what was pushed, by repository and name; ``token`` is needed to push."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.token = "secret"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer_json({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            name = f"{json.loads(body).get('organization', 'me')}/{json.loads(body)['name']}"
            self.answer_json({"url": f"{self.server.address}/{name}", "id": name})
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            self.answer_json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[repository, line["value"]["path"]] = content
            place = f"{self.server.address}/{repository}/commit/{COMMIT}"
            self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": place, "hookOutput": ""})
        elif self.path == "/api/validate-yaml":
            self.answer_json({"warnings": [], "errors": []})
        else:
            self.answer_json({"error": self.path}, 404)

    def do_GET(self) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        content = self.server.files.get((repository, rest.partition("/")[2]))
        if content is None:
            self.answer(404, X_Error_Code="RepoNotFound")
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815  (the name that the server looks up)


@contextmanager
def running_stub() -> Iterator[Stub]:
    stub = Stub()
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join(10)
