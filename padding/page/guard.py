# SPDX-License-Identifier: Apache-2.0
"""What may come in and go out while the page is served, whatever its framework would do.

``Guard`` stands before the web application: requests of other hosts (DNS rebinding), large bodies and too many uploads
are refused, and browsers are told to load nothing from elsewhere. ``stay_on_this_machine`` makes the process refuse
every connection to another machine: a request that names an address to fetch from is an error.
"""

import ipaddress
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any

MAX_UPLOAD_MB = 10
MAX_FILES = 400
"""Files that uploads may have left behind; older ones are deleted after an hour."""
_MAX_BODY = (MAX_UPLOAD_MB + 1) * 2**20  # a file and what stands around it
_POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _TooLargeError(Exception):
    """A body went on beyond its limit."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, hosts: Collection[str], uploads: Path) -> None:
        """Put it before an application.

        Args:
            app: the application.
            hosts: names and addresses under which the page is called, without port.
            uploads: folder that uploaded files lie below.
        """
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._uploads = uploads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        try:
            await self._app(scope, _limited(receive), send_with_policy)
        except _TooLargeError:
            if not started:
                await _answer(send, 413, f"more than {MAX_UPLOAD_MB} MB")

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._hosts:
            return 421, "this page is not served under that name"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _MAX_BODY:
            return 413, f"more than {MAX_UPLOAD_MB} MB"
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload") and self._is_full():
            return 429, f"{MAX_FILES} files were uploaded; older ones are deleted after an hour, or restart the page"
        return None

    def _is_full(self) -> bool:
        return sum(path.is_file() for path in self._uploads.rglob("*")) >= MAX_FILES


def _limited(receive: Receive) -> Receive:
    """The body of a request, until it is too long: its length may not have been told, or wrongly."""
    size = 0

    async def next_part() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > _MAX_BODY:
            raise _TooLargeError
        return message

    return next_part


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def stay_on_this_machine() -> None:
    """Refuse, from now on and in all threads of this process, to look up or connect to another machine.

    Connections that come in are not touched. It cannot be undone.
    """
    sys.addaudithook(_refuse_others)


def _refuse_others(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        connection, address = arguments
        if connection.family != getattr(socket, "AF_UNIX", None) and not is_local(address[0]):
            raise PermissionError(f"the page does not connect to {address[0]}: nothing leaves this machine")
    elif event == "socket.getaddrinfo" and arguments[0] is not None and not is_local(arguments[0]):
        raise PermissionError(f"the page does not look up {arguments[0]!r}: nothing leaves this machine")


def is_local(host: str | bytes) -> bool:
    """Whether a name or address means this machine: loopback, or all of its own interfaces."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
