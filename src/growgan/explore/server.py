"""The explorer over HTTP: one page, the questions that it asks, and files to take away.

It listens on this machine alone, answers to its own name alone (so that no web page elsewhere can
reach it by a name of its own), and needs no network.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from pydantic import Field, field_validator
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from growgan.errors import UserError
from growgan.explore.forms import Form
from growgan.explore.studio import Studio
from growgan.growth.export import export
from growgan.growth.model import Model
from growgan.plain import parse
from growgan.report.sheet import write_images
from growgan.report.style import PALETTE

HOSTS = ["127.0.0.1", "localhost", "[::1]"]
EVERYWHERE = ("0.0.0.0", "::")
STATIC = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css")}
STATIC["page.js"] = ("page.js", "text/javascript")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
TYPES = {"png": "image/png", "npz": "application/octet-stream", "zip": "application/zip"}
LARGEST = 1 << 16  # bytes of a question
FOREIGN = "a page of somewhere else may not ask"


class TakenForm(Form):
    """Samples to take away, more of them than a page shows."""

    count: int = Field(36, ge=1, le=4096)

    @field_validator("labels", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Accept ``0,3`` for labels, as in the words of an address."""
        return value.split(",") if isinstance(value, str) else value


def application(studio: Studio, host: str = HOSTS[0]) -> Starlette:
    """Return the explorer of a run as an ASGI application.

    Args:
        host: the address that it will listen on. Only on loopback, and on an address by itself, are
            the names known that it may be asked by; a page elsewhere cannot borrow another.
    """
    names = ["*"] if host in EVERYWHERE else [*HOSTS, f"[{host}]" if ":" in host else host]

    def page(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in STATIC:
            return PlainTextResponse("there is no such page", 404)
        file, kind = STATIC[name]
        return Response(_static(file), media_type=kind, headers=HEADERS)

    async def ask(request: Request) -> Response:
        if _foreign(request):
            return JSONResponse({"error": FOREIGN}, 403, HEADERS)
        try:
            given = await _question(request)
            answer = await run_in_threadpool(studio.ask, request.path_params["name"], given)
        except (UserError, ValueError) as error:
            return JSONResponse({"error": _one_line(error)}, 400, HEADERS)
        return JSONResponse(answer, headers=HEADERS)

    def download(request: Request) -> Response:
        if _foreign(request):
            return PlainTextResponse(FOREIGN, 403, HEADERS)
        try:
            name, content = taken(studio, request.path_params["kind"], request.query_params)
        except (UserError, ValueError) as error:
            return PlainTextResponse(_one_line(error), 400, HEADERS)
        kind = TYPES[name.rpartition(".")[2]]
        put = {"Content-Disposition": _attached(name)}
        return Response(content, media_type=kind, headers=HEADERS | put)

    routes = [
        Route("/", page),
        Route("/{name}", page),
        Route("/ask/{name}", ask, methods=["POST"]),
        Route("/take/{kind}", download),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, names)])


def _foreign(request: Request) -> bool:
    """Return whether a browser says that a page of somewhere else asks."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _attached(name: str) -> str:
    """Return the header that names a file: in ASCII, and in full where that is not all (RFC 6266).

    >>> print(_attached("naïve-0001.png"))
    attachment; filename="na_ve-0001.png"; filename*=UTF-8''na%C3%AFve-0001.png
    """
    plain = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)
    full = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{full}'


async def _question(request: Request) -> dict[str, Any]:
    # A form of another site cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise UserError("a question is JSON")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise UserError("the question is too long")
    given = parse(body or b"{}")
    if not isinstance(given, dict):
        raise UserError("a question is an object")
    return given


def taken(studio: Studio, kind: str, asked: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the name and the bytes of what is taken away: "png", "npz", or a form of export.

    Args:
        asked: ``candidate``, and of images ``count``, ``seed``, ``truncation`` and ``labels``.

    Raises:
        UserError: an unknown kind, or what cannot be made.
        ValueError: ``asked`` does not fit :class:`TakenForm`.
    """
    form = TakenForm.model_validate({key: value for key, value in asked.items() if value})
    with tempfile.TemporaryDirectory() as made:
        with studio.lock:
            model = studio.model(form.candidate)
            stem = f"{studio.path.resolve().name}-{model.folder.name}"
            if kind in ("png", "npz"):
                images, labels = model.sample(**form.sheet), model.labels(form.count, form.labels)
                name = f"{stem}-{form.seed}.{kind}"
                path = write_images(images.transpose(0, 3, 1, 2), labels, Path(made) / f"it.{kind}")
                return name, path.read_bytes()
        # A graph takes seconds, and is made of a copy of its own: the panels go on meanwhile.
        with studio.writing:
            folder = export(Model(model.folder), kind, Path(made) / "export")
        return f"{stem}-{kind}.zip", _zipped(folder)


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def _one_line(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


@cache
def _static(file: str) -> str:
    text = (files("growgan.explore") / file).read_text("utf-8")
    return PALETTE + text if file.endswith(".css") else text


def serve(studio: Studio, *, host: str, port: int) -> None:
    """Serve the explorer of a run until it is stopped."""
    uvicorn.run(application(studio, host), host=host, port=port, log_level="warning")
