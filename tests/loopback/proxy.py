"""A forward proxy that answers for every host itself: CONNECT for https, the address in the request line for http."""

from __future__ import annotations

import email.utils
import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

_PIECE = 1 << 14
_PUBLISHED = 1_700_000_000


@dataclass(frozen=True)
class Request:
    """Hold what a client asked for.

    Attributes:
        method: One of ``GET``, ``HEAD``, ``POST``, ...
        address: Address with its query, ``https://host/path?query``.
        headers: Header values; names in lower case.
        body: Bytes that came with it; empty by default.
    """

    method: str
    address: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def host(self) -> str:
        return str(urlsplit(self.address).hostname)

    @property
    def path(self) -> str:
        return urlsplit(self.address).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.address).query, keep_blank_values=True)


@dataclass
class Reply:
    """Hold what a host answers.

    Attributes:
        body: Bytes, or a file to read them from.
        status: Number of the answer, as in HTTP.
        headers: Others than Content-Length, which `Proxy` writes.
    """

    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield from (self.body[at : min(at + _PIECE, end)] for at in range(start, end, _PIECE))
            return
        with self.body.open("rb") as file:
            file.seek(start)
            for at in range(start, end, _PIECE):
                yield file.read(min(_PIECE, end - at))


def page(title: str, body: str = "", status: int = 200) -> Reply:
    """Answer with a web page."""
    content = f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{body or title}</body></html>"
    return Reply(content.encode(), status, {"Content-Type": "text/html; charset=utf-8"})


def file_reply(content: bytes | Path, kind: str = "application/octet-stream", tag: str | None = None) -> Reply:
    """Answer with a file of which a part may be asked for."""
    reply = Reply(content, 200, {"Content-Type": kind, "Accept-Ranges": "bytes"})
    if tag is None:
        tag = hashlib.md5(content).hexdigest() if isinstance(content, bytes) else f"{reply.size:x}-{content.name}"
    reply.headers |= {"ETag": f'"{tag}"', "Last-Modified": email.utils.formatdate(_PUBLISHED, usegmt=True)}
    return reply


Site = Callable[[Request], Reply]


@dataclass
class Fault:
    """Something that goes wrong at addresses that contain a text.

    Attributes:
        where: Text that the address contains.
        status: Answer with this status and a web page.
        html: Answer with a web page of this text.
        cut: Close the connection after this many bytes of the body.
        hold: Send no more after this many bytes until `Proxy.close`; `reached` is set then.
        seconds: Time before each piece of 16 kB.
        ranges: Whether a Range header is understood.
        times: Answers that it spoils; None: all.
        method: Method of the requests that it spoils.
        reached: Set when an answer was spoilt.
    """

    where: str
    status: int | None = None
    html: str | None = None
    cut: int | None = None
    hold: int | None = None
    seconds: float = 0.0
    ranges: bool = True
    times: int | None = None
    method: str = "GET"
    reached: threading.Event = field(default_factory=threading.Event)

    def spoils(self, request: Request) -> bool:
        return self.times != 0 and request.method == self.method and self.where in request.address


@dataclass
class Answered:
    """A request and what was sent for it.

    Attributes:
        request: The one `Request` that was answered.
        status: HTTP status of the answer.
        sent: Bytes of the body that were written.
        bad: Whether no host of this world answers such an address.
        is_page: Whether the answer was a web page.
    """

    request: Request
    status: int = 0
    sent: int = 0
    bad: bool = False
    is_page: bool = False

    def __str__(self) -> str:
        wanted = self.request.headers.get("range")
        part = f" ({wanted})" if wanted else ""
        return f"{self.request.method} {self.request.address}{part} -> {self.status}, {self.sent} bytes"


class Proxy(ThreadingHTTPServer):
    """The proxy; runs between ``with`` and its end.

    Attributes:
        sites: Host name -> what answers for it.
        faults: What goes wrong; the first that matches counts.
        answered: Every request in the order of arrival.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, sites: Mapping[str, Site] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.sites: dict[str, Site] = dict(sites or {})
        self.faults: list[Fault] = []
        self.answered: list[Answered] = []
        self.authority = trustme.CA()
        self.released = threading.Event()
        self._lock = threading.Lock()
        self.context = cache(self._context)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def _context(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(context)
        return context

    def context_of(self, host: str) -> ssl.SSLContext:
        with self._lock:
            return self.context(host)

    def answer(self, request: Request) -> tuple[Answered, Reply, Fault | None]:
        """Find what answers a request, and what goes wrong with it."""
        record = Answered(request)
        with self._lock:
            self.answered.append(record)
            fault = next((one for one in self.faults if one.spoils(request)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is not None and (fault.status or fault.html):
            fault.reached.set()
            return record, page(fault.html or f"Error {fault.status}", status=fault.status or 200), fault
        site = self.sites.get(request.host)
        if site is None:
            record.bad = True
            return record, page(f"no host {request.host} in this world", status=502), fault
        reply = site(request)
        record.bad = reply.status == 501
        return record, reply, fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news; the test looks at what the server was asked."""


class _Connection(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    tunnel: str | None = None

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        context = self.server.context_of(host)
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.tunnel = f"https://{host}"
        self.close_connection = False

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        address = self.path if self.tunnel is None else f"{self.tunnel}{self.path}"
        request = Request(self.command, address, headers, self._body(headers))
        record, reply, fault = self.server.answer(request)
        start, end = 0, reply.size
        if reply.status == 200 and "Accept-Ranges" in reply.headers:
            if fault is not None and not fault.ranges:
                del reply.headers["Accept-Ranges"]
                fault.reached.set()
            else:
                start, end = _part(request, reply)
        record.status = reply.status
        record.is_page = reply.headers.get("Content-Type", "").startswith("text/html")
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(end - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(record, reply.pieces(start, end), fault)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, record: Answered, pieces: Iterator[bytes], fault: Fault | None) -> None:
        limits = [one for one in (fault.cut, fault.hold) if one is not None] if fault is not None else []
        left = min(limits, default=None)
        for piece in pieces:
            if fault is not None and fault.seconds:
                time.sleep(fault.seconds)
            whole = left is None or len(piece) <= left
            self.wfile.write(piece if whole else piece[:left])
            self.wfile.flush()
            record.sent += len(piece) if whole else int(left or 0)
            if left is not None:
                left -= len(piece) if whole else left
            if not whole:
                break
        if fault is None:
            return
        fault.reached.set()
        if fault.hold is not None:
            self.server.released.wait()
        if left is not None:
            self.close_connection = True

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(headers.get("content-length", 0)))

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def _part(request: Request, reply: Reply) -> tuple[int, int]:
    """Say which bytes a client asked for, and change the answer so that it says them."""
    size, wanted = reply.size, request.headers.get("range", "")
    versions = (None, reply.headers.get("ETag"), reply.headers.get("Last-Modified"))
    if not wanted.startswith("bytes=") or request.headers.get("if-range") not in versions:
        return 0, size
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start = int(first) if first else size - int(last)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
        reply.status, reply.body = 416, b""
        reply.headers["Content-Range"] = f"bytes */{size}"
        return 0, 0
    reply.status = 206
    reply.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return start, end
