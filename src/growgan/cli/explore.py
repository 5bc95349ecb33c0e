"""``growgan explore``: a web application that shows a run."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from typing import Annotated

import typer

from growgan.cli.options import RunArgument
from growgan.errors import UserError, require_extra

DEFAULT_HOST = "127.0.0.1"  # reachable from this machine only
BROWSER_DELAY_SECONDS = 0.5  # until the server listens


def explore(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(help="Images that RUN was trained on, to show the nearest ones."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 7860,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Any other than the default lets others connect."),
    ] = DEFAULT_HOST,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Explore a run in the browser: its growth, its samples, and its latent space.

    Examples:
        growgan explore runs/photos
        growgan explore runs/photos --data photos/ --port 8000
    """
    for module in ("starlette", "uvicorn"):
        require_extra(module, "the explorer", "'growgan[explore]'")
    from growgan.explore.api import ExplorerApi
    from growgan.explore.server import serve
    from growgan.run.run import Run
    from growgan.run.run_directory import check_run_dir

    generator = Run.open(run).best
    port = _find_free_port(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    typer.echo(f"starting {address} ...", err=True)
    images = generator.load_data(data) if data else None
    if images is not None:
        check_run_dir(run, images, resume=True)
        typer.echo(f"computing features of {len(images):,} training images ...", err=True)
    api = ExplorerApi(run, images)
    api.preload()
    if host != DEFAULT_HOST:
        typer.echo("warning: anyone who can reach this address can see the run", err=True)
    typer.echo(f"{address}  (press Ctrl-C to stop)")
    if browser:
        threading.Timer(BROWSER_DELAY_SECONDS, webbrowser.open, [address]).start()
    serve(api, host=host, port=port)


def _find_free_port(host: str, port: int) -> int:
    """Return ``port``, or a free one if it is 0.

    Raises:
        UserError: The port is in use, or the address is invalid.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"cannot listen on '{host}': {error.strerror or error}") from error
            raise UserError(
                f"--port {port} is in use; choose another one, or 0 for any free port"
            ) from error
        bound_port: int = probe.getsockname()[1]
        return bound_port
