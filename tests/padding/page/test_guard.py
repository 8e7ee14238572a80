# SPDX-License-Identifier: Apache-2.0
"""What the guard lets in and out, and a process that connects to nobody else."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from padding.page import guard
from padding.page.guard import Guard, is_local

MB = 2**20


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body and answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"served"})


def ask(folder: Path, *, path: str = "/", host: str = "localhost:7860", method: str = "GET", **more: Any) -> list[Any]:
    """Messages of the answer to one request; ``length`` is told, ``parts`` of a MB each are sent."""
    headers = [(b"host", host.encode()), *([(b"content-length", more["length"])] if "length" in more else [])]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    left = more.get("parts", 0)
    answer: list[Any] = []

    async def receive() -> Any:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(MB) if left >= 0 else b"", "more_body": left > 0}

    async def send(message: Any) -> None:
        answer.append(message)

    guarded = Guard(application, hosts={"localhost", "127.0.0.1", "[::1]"}, uploads=folder)
    asyncio.run(guarded(scope, receive, send))
    return answer


def status(answer: list[Any]) -> int:
    return int(answer[0]["status"])


def test_requests_are_served_with_a_policy_that_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    answer = ask(tmp_path)
    assert answer[1]["body"] == b"served"
    headers = dict(answer[0]["headers"])
    assert headers[b"x-own"] == b"1"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1:1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.example", 421), ("", 421)],
)
def test_pages_of_other_names_get_nothing(host: str, expected: int, tmp_path: Path) -> None:
    assert status(ask(tmp_path, host=host)) == expected


def test_large_bodies_are_refused_told_or_not(tmp_path: Path) -> None:
    most = guard.MAX_UPLOAD_MB
    assert status(ask(tmp_path, method="POST", parts=most)) == 200
    assert status(ask(tmp_path, method="POST", parts=most + 2)) == 413
    assert status(ask(tmp_path, method="POST", length=str((most + 2) * MB).encode())) == 413
    assert status(ask(tmp_path, method="POST", length=b"-1")) == 413


def test_too_many_files_stop_uploads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_FILES", 2)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a").touch()
    assert status(ask(tmp_path, method="POST", path="/gradio_api/upload")) == 200
    (tmp_path / "one/b").touch()
    assert status(ask(tmp_path, method="POST", path="/gradio_api/upload")) == 429
    assert status(ask(tmp_path, method="POST", path="/gradio_api/queue/join")) == 200


def test_other_protocols_pass(tmp_path: Path) -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(inner, hosts=(), uploads=tmp_path)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", b"127.9.9.9", "0.0.0.0"])
def test_what_is_this_machine(host: str | bytes) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.com", "fe80::1%lo", "10.0.0.1"])
def test_what_is_another_one(host: str) -> None:
    assert not is_local(host)


def test_a_process_that_stays_here_reaches_itself_and_nobody_else() -> None:
    """Addresses are those of documentation (RFC 5737), which belong to nobody; the hook refuses before a packet."""
    code = """
import socket, urllib.request
from padding.page.guard import stay_on_this_machine
stay_on_this_machine()
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
socket.create_connection(("localhost", server.getsockname()[1])).close()
for attempt in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    lambda: socket.getaddrinfo("name.invalid", 80),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
):
    try:
        attempt()
    except PermissionError as error:
        print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("nothing leaves this machine") == 3, done.stdout + done.stderr
