"""``growgan explore``: a run in the browser."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from growgan.errors import UserError, require

HOST = "127.0.0.1"  # of this machine alone


def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    data: Annotated[
        str | None, typer.Option(help="what it was trained on, for the nearest images")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 7860,
    host: Annotated[str, typer.Option(help="address to listen on; others reach it then")] = HOST,
    browser: Annotated[bool, typer.Option(help="open a browser, too")] = True,
) -> None:
    """Open a run in the browser: its growth, its samples, and what lies between them."""
    for module in ("starlette", "uvicorn"):
        require(module, "the explorer", "'growgan[explore]'")
    from growgan.explore.server import serve
    from growgan.explore.studio import Studio
    from growgan.growth.run import Run, check_out

    model = Run.open(run).best
    port = _free(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    typer.echo(f"{address} in a moment ...", err=True)
    images = model.load_data(data) if data else None
    if images is not None:
        check_out(run, images, resume=True)
        typer.echo(f"looking at {len(images):,} training images ...", err=True)
    studio = Studio(run, images)
    studio.warm()
    if host != HOST:
        typer.echo("there is no password: whoever reaches this address can look", err=True)
    typer.echo(f"{address}  (Ctrl-C ends it)")
    if browser:  # once it listens
        threading.Timer(0.5, webbrowser.open, [address]).start()
    serve(studio, host=host, port=port)


def _free(host: str, port: int) -> int:
    """Return the port, or one that is free for 0; raise a :class:`UserError` if it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"cannot listen on '{host}': {error.strerror or error}") from error
            raise UserError(f"port {port} is taken; choose another --port, or 0") from error
        found: int = probe.getsockname()[1]
        return found
