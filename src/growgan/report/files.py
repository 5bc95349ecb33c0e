"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from growgan.data.files import sync_file, sync_folder


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; it takes that name if the block succeeds.

    It is on the disk before it does.

    Args:
        path: where the result goes; a file there is replaced, a folder there must be empty.
        folder: whether the result is a folder, which then exists when the block begins.

    Raises:
        OSError: the parent folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other machines may write to the same disk. The suffix stays last: writers such as numpy append
    # one of their own otherwise.
    part = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.part{path.suffix}")
    try:
        if folder:
            part.mkdir()
        yield part
        if not folder:
            sync_file(part)
        elif hasattr(os, "sync"):
            os.sync()  # in one go: file by file, thousands of images would take minutes
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        if folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise
