"""The page for people: `PAGE`, and the files that it consists of.

All of them are this server's own. The files' paths have a hash of their content, so that browsers keep them for good,
and a browser that shows an old page after an upgrade never mixes it with new files: it asks for those that it knows,
is told that they are not there, and says that the page is to be loaded anew.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aggregation_server.web.answers import ProblemError
from aggregation_server.web.callers import Keys, require_role

PAGE = "/"
FILES = "/page/{version}/{name}"
_STATIC = Path(__file__).parent / "static"
_INDEX = "index.html"
_PLOTLY = "plotly.min.js"
_PLACE = "{{files}}"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts are files of this server alone. Styles may be inline: plotly makes some, and the page makes no markup of text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# The browser's own: whoever shares a proxy with it has not shown a key.
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is and compressed."""

    plain: bytes
    compressed: bytes
    media_type: str


@dataclass(frozen=True)
class PageFiles:
    """All files of the page.

    Attributes:
        version: hash of all of them.
        files: by name.
    """

    version: str
    files: dict[str, PageFile]


@cache
def page_files() -> PageFiles:
    """The page's files, read and compressed once: half a second, and 6 MB."""
    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None  # it is a dependency
    paths = [*sorted(_STATIC.iterdir()), Path(spec.origin).parent / "package_data" / _PLOTLY]
    content = {path.name: path.read_bytes() for path in paths}
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    version = digest.hexdigest()[:16]
    content[_INDEX] = content[_INDEX].replace(_PLACE.encode(), f"page/{version}".encode())
    files = {
        name: PageFile(data, gzip.compress(data, 6, mtime=0), _TYPES[Path(name).suffix])
        for name, data in content.items()
    }
    return PageFiles(version, files)


def page_routes(keys: Keys) -> APIRouter:
    """The routes, for viewers."""
    router = APIRouter(tags=["page"], include_in_schema=False)

    @router.get(PAGE)
    async def page(request: Request) -> Response:
        require_role(request, keys, "viewer")
        found = await run_in_threadpool(page_files)
        kept = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding", "Content-Security-Policy": _POLICY}
        return _answer(request, found.files[_INDEX], found.version, kept)

    @router.get(FILES)
    async def file(request: Request, version: str, name: str) -> Response:
        require_role(request, keys, "viewer")
        found = await run_in_threadpool(page_files)
        if version != found.version or name not in found.files or name == _INDEX:
            raise ProblemError(404, "not_found", "no such file of the page: load the page anew")
        return _answer(request, found.files[name], found.version, _KEPT)

    return router


def _answer(request: Request, file: PageFile, version: str, headers: dict[str, str]) -> Response:
    etag = f'W/"{version}"'  # weak: the same for both encodings
    headers = headers | _SAFE | {"ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.plain, media_type=file.media_type, headers=headers)
