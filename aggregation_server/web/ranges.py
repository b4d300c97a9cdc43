"""A part of a content, as a request asks for it: one range of bytes (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def asked_range(headers: Mapping[str, str], size: int, etag: str) -> range | None:
    """The positions of the bytes that are asked for; None for all of the content.

    Several ranges, another unit and what is no range at all stand for all, as the RFC allows; so does a range that is
    asked for only if the content is still another one (``If-Range``).

    Args:
        headers: of the request, by name in any case.
        size: of the content.
        etag: of the content, with its quotes.

    Returns:
        Of a range that lies behind the end of the content, an empty one: status 416.
    """
    found = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if not first:
        return range(max(size - int(last), 0), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(min(int(first), size), min(int(last) + 1, size) if last else size)
