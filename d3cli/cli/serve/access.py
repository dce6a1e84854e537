"""Who may use the server: its address, its key, and the web pages that it answers."""

import errno
import ipaddress
import socket
from urllib.parse import urlsplit

from d3cli.base.errors import D3Error, Setting, UsageError, Words
from d3cli.cli.serve.options import AccessOptions
from d3cli.serve.protocol import CONNECTIONS
from d3cli.serve.running import bind

SHORTEST_KEY = 8


def check_access(access: AccessOptions) -> str | None:
    """The key that clients must send; None if the server is for this machine alone.

    Raises:
        UsageError: the address is not this machine's own and there is no key, or a value is
            impossible.
    """
    key = access.api_key
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise UsageError(  # never with the key itself
            (Setting("api_key"), " is not a key"),
            f"use at least {SHORTEST_KEY} ASCII characters: openssl rand -hex 16 makes some",
        )
    if key is not None and key != key.strip():
        raise UsageError((Setting("api_key"), " begins or ends with a space"), "leave it out")
    if key is None and not is_own(access.host):
        raise UsageError(
            (
                Setting("host", access.host),
                " lets others use the server, so it needs a key",
            ),
            ("set ", Setting("api_key"), ", or leave out ", Setting("host")),
        )
    for origin in access.allow_origin or ():
        _check_origin(origin, has_key=key is not None)
    return key


def is_own(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reserve(host: str, port: int) -> socket.socket:
    """A socket on the address, taken before the model is loaded; it does not listen yet.

    Raises:
        D3Error: the port is taken, or the address is not this machine's.
    """
    try:
        return bind(host, port)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def listen(listener: socket.socket) -> None:
    """Listens: from here on, requests wait until they are answered.

    Raises:
        D3Error: another program, which had the address as well, listens already.
    """
    try:
        listener.listen(CONNECTIONS)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> D3Error:
    # A port that is taken, or below 1024. Everything else is about the address.
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        hint: Words = ("choose another ", Setting("port"), ", or ", Setting("port", "0"),
                       " for a free one")  # fmt: skip
    else:
        hint = ("give an address of this machine with ", Setting("host"))
    return D3Error(f"cannot listen on {host}, port {port}: {error.strerror or error}", hint)


def _check_origin(origin: str, *, has_key: bool) -> None:
    if origin == "*":
        if not has_key:
            raise UsageError(
                (Setting("allow_origin", "*"), " lets every web page use the server"),
                ("name the origins, or set ", Setting("api_key")),
            )
        return
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
        raise UsageError(
            (Setting("allow_origin", origin), " is not an origin"),
            "write it as http://localhost:3000: no path, no slash at the end",
        )
