"""The HTTP server of the explorer: the page, its API, and downloads.

By default it listens on this machine only. It answers only requests addressed to its own host name,
which prevents DNS rebinding by other websites. It needs no network connection.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from growgan.artifacts.export import export
from growgan.errors import UserError
from growgan.explore.api import ExplorerApi
from growgan.explore.request_models import DownloadRequest
from growgan.jsonl import parse_json
from growgan.report.image_files import write_images
from growgan.report.stylesheet import PALETTE_CSS
from growgan.sampling.trained_generator import TrainedGenerator

LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
WILDCARD_HOSTS = ("0.0.0.0", "::")
STATIC_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
RESPONSE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
DOWNLOAD_CONTENT_TYPES = {
    "png": "image/png",
    "npz": "application/octet-stream",
    "zip": "application/zip",
}
MAX_REQUEST_BYTES = 1 << 16
CROSS_SITE_MESSAGE = "requests of other websites are refused"


def create_app(api: ExplorerApi, host: str = LOOPBACK_HOSTS[0]) -> Starlette:
    """Return the explorer of a run as an ASGI application.

    Args:
        api: The API of the run.
        host: Address that the server listens on. Requests must be addressed to it, or to this
            machine. If the server listens on all addresses, its names are unknown, and requests
            to any name are answered.
    """
    allowed_hosts = [*LOOPBACK_HOSTS, f"[{host}]" if ":" in host else host]
    if host in WILDCARD_HOSTS:
        allowed_hosts = ["*"]

    def serve_static(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in STATIC_FILES:
            return PlainTextResponse("page not found", 404)
        file, media_type = STATIC_FILES[name]
        return Response(_read_static_file(file), media_type=media_type, headers=RESPONSE_HEADERS)

    async def call_endpoint(request: Request) -> Response:
        if _is_cross_site(request):
            return JSONResponse({"error": CROSS_SITE_MESSAGE}, 403, RESPONSE_HEADERS)
        try:
            params = await _read_json_body(request)
            result = await run_in_threadpool(api.handle, request.path_params["name"], params)
        except (UserError, ValueError) as error:
            return JSONResponse({"error": _error_message(error)}, 400, RESPONSE_HEADERS)
        return JSONResponse(result, headers=RESPONSE_HEADERS)

    def download(request: Request) -> Response:
        if _is_cross_site(request):
            return PlainTextResponse(CROSS_SITE_MESSAGE, 403, RESPONSE_HEADERS)
        try:
            filename, content = build_download(
                api, request.path_params["kind"], request.query_params
            )
        except (UserError, ValueError) as error:
            return PlainTextResponse(_error_message(error), 400, RESPONSE_HEADERS)
        headers = {**RESPONSE_HEADERS, "Content-Disposition": _content_disposition(filename)}
        media_type = DOWNLOAD_CONTENT_TYPES[filename.rpartition(".")[2]]
        return Response(content, media_type=media_type, headers=headers)

    routes = [
        Route("/", serve_static),
        Route("/{name}", serve_static),
        Route("/api/{name}", call_endpoint, methods=["POST"]),
        Route("/download/{kind}", download),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts)])


def _is_cross_site(request: Request) -> bool:
    """Return whether the browser says that another website sent the request."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _content_disposition(filename: str) -> str:
    """Return the header that names a download, in ASCII and, if that differs, in full (RFC 6266).

    >>> print(_content_disposition("naïve-0001.png"))
    attachment; filename="na_ve-0001.png"; filename*=UTF-8''na%C3%AFve-0001.png
    """
    ascii_name = re.sub(r"[^\w. -]", "_", filename, flags=re.ASCII)
    full_name = "" if ascii_name == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{ascii_name}"{full_name}'


async def _read_json_body(request: Request) -> dict[str, Any]:
    """Read a JSON object of at most 64 KiB.

    Raises:
        UserError: The body is something else.
    """
    # A form of another website cannot send this type without asking first (CORS).
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type != "application/json":
        raise UserError(f"the content type must be application/json, but got '{content_type}'")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            raise UserError(f"the request must not exceed {MAX_REQUEST_BYTES} bytes")
    params = parse_json(body or b"{}")
    if not isinstance(params, dict):
        raise UserError(f"the request must be a JSON object, but got {params!r:.40}")
    return params


def build_download(api: ExplorerApi, kind: str, query: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the name and the content of a download.

    Args:
        api: The API of the run.
        kind: "png" or "npz" for samples, or an export format for the generator.
        query: Fields of :class:`DownloadRequest`.

    Raises:
        UserError: The kind is unknown, or the download cannot be made.
        ValueError: ``query`` is not valid.
    """
    request = DownloadRequest.model_validate({key: value for key, value in query.items() if value})
    with tempfile.TemporaryDirectory() as temporary_dir:
        with api.inference_lock:
            generator = api.generator(request.candidate)
            stem = f"{api.run_dir.resolve().name}-{generator.checkpoint_dir.name}"
            if kind in ("png", "npz"):
                images = generator.sample(**request.sample_spec)
                labels = generator.sample_labels(request.count, request.labels)
                path = write_images(
                    images.transpose(0, 3, 1, 2), labels, Path(temporary_dir) / f"samples.{kind}"
                )
                return f"{stem}-{request.seed}.{kind}", path.read_bytes()
        # An export takes seconds. It uses a copy of the generator, so the page stays responsive.
        with api.export_lock:
            generator = TrainedGenerator(generator.checkpoint_dir)
            folder = export(generator, kind, Path(temporary_dir) / "export")
        return f"{stem}-{kind}.zip", _zip_folder(folder)


def _zip_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def _error_message(error: Exception) -> str:
    """Return a message of one line."""
    if isinstance(error, ValidationError):
        details = error.errors()[0]
        return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"
    return str(error)


@cache
def _read_static_file(file: str) -> str:
    text = Path(__file__).with_name(file).read_text("utf-8")
    return PALETTE_CSS + text if file.endswith(".css") else text


def serve(api: ExplorerApi, *, host: str, port: int) -> None:
    """Serve the explorer of a run until the process is interrupted."""
    uvicorn.run(create_app(api, host), host=host, port=port, log_level="warning")
