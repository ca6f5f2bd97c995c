# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What is asked about a request before its body is parsed, whichever engine answers.

Is its body too large: input are its bytes, output is why it is refused, or nothing. By which name was it sent, and
which names are ours.
"""

import contextlib
import ipaddress
import re
import urllib.parse
from collections.abc import Sequence


__all__ = ["MAX_BODY_BYTES", "find_excess", "host_name", "names_of"]

MAX_BODY_BYTES = 256 * 1024**2  # of one request, its `data:` URLs included
# Bounds of what is parsed in one go, while everybody waits.
MAX_TEXT_BYTES = 2 * 1024**2  # beside `data:` URLs
_DATA = re.compile(rb'"data(?::|"\s{0,9}:\s{0,9}")')  # or the key beside which Anthropic's clients send the same
MAX_DATA_URLS = 10_000  # that are recognised
MAX_BRACKETS = 100_000  # objects and lists, and those that texts spell


def find_excess(body: bytes) -> str | None:
    """Why a body is too large to be parsed, or `None`."""
    if (size := _size_beside_data(body)) > MAX_TEXT_BYTES:
        return f"The request has {size} bytes beside those of its data: URLs; the limit is {MAX_TEXT_BYTES}."
    if (count := body.count(b"[") + body.count(b"{")) > MAX_BRACKETS:
        return f"The request has {count} brackets; the limit is {MAX_BRACKETS}."
    return None


def _size_beside_data(body: bytes) -> int:
    size, end = len(body), 0
    for _ in range(MAX_DATA_URLS):
        if (begin := body.find(b'"data', end)) < 0:
            break
        if (opening := _DATA.match(body, begin)) is None:
            end = begin + 1
            continue
        if (end := body.find(b'"', opening.end())) < 0:
            break
        size -= end - begin
    return size


def host_name(address: str) -> str:
    """The name in a `Host` header, or in what a user gives as one: in small letters, without a port."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))  # of IPv6 as people type it, without brackets
    with contextlib.suppress(ValueError):
        address = urllib.parse.urlsplit(f"//{address}").hostname or address
    return address.lower()


def names_of(host: str, allowed_hosts: Sequence[str]) -> list[str]:
    """The names under which clients may reach a server at a host; all if there are none."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    # Web pages can reach what listens at loopback under names of their own.
    return ["localhost", "127.0.0.1", "::1", host, *allowed_hosts] if is_loopback or allowed_hosts else []
