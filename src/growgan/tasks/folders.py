"""Two sets as pairs, row by row: what can be known of whether the rows belong together."""

from __future__ import annotations

from pathlib import Path

from growgan.data import ImageSet
from growgan.data.folder import is_image_name, walk
from growgan.errors import UserError


def check_pairs(data: ImageSet, truth: ImageSet) -> None:
    """Raise a UserError where two sets are no pairs, row by row.

    Rows go by the order of the files' names. Where both sets are folders these are compared, but
    for their endings: names that one set has at another place, or alone, are no pairs. Sets that
    share no name at all may be named by two rules, and are taken as they are.
    """
    for each in (data, truth):
        if each.broken:
            raise UserError(
                f"'{each.name}' has {len(each.broken):,} broken files, so that rows would not "
                f"belong together: {each.broken[0]}; remove them and their partners"
            )
    if len(data) != len(truth) or data.resolution != truth.resolution:
        sizes = [f"{len(each):,} of {each.resolution}" for each in (data, truth)]
        raise UserError(f"'{data.name}' and '{truth.name}' are no pairs: {sizes[0]} and {sizes[1]}")
    first, second = stems(data), stems(truth)
    if first is None or second is None or not set(first) & set(second):
        return
    for one, other in zip(first, second, strict=True):
        if one != other:
            raise UserError(
                f"'{data.name}' and '{truth.name}' are no pairs: '{one}' would become '{other}'"
            )


def stems(data: ImageSet) -> list[str] | None:
    """Return the names of a folder's images without endings, row by row; None if unknown."""
    root = Path(data.source)
    if not data.source or not root.is_dir():
        return None
    names = sorted(name for name, _ in walk(root) if is_image_name(name))
    return [name.rpartition(".")[0] for name in names] if len(names) == len(data) else None
