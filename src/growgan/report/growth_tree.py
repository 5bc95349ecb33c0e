"""The growth tree of a run, with one node per architecture.

Consecutive segments that train the same pair of networks form one :class:`TreeNode`, so the tree
shows growths rather than time. Children of any of these segments hang below the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from growgan.report.run_record import CandidateRecord, RunRecord

STATUS_ORDER = {"best": 0, "alive": 1, "pruned": 2, "failed": 3}


@dataclass(frozen=True)
class TreeNode:
    """One pair of networks and the segments that trained it.

    Attributes:
        segments: The segments, oldest first; at least one.
        children: The nodes that grew from it: the best lineage first, then by score.
        on_best_lineage: Whether the node is on the path from the root to the best candidate.
        has_survivors: Whether the node or any node below it is alive.
    """

    segments: tuple[CandidateRecord, ...]
    children: tuple[TreeNode, ...]
    on_best_lineage: bool
    has_survivors: bool

    @property
    def representative(self) -> CandidateRecord:
        """The segment to show for the node: the best of the run if it is here, else the last."""
        best = [c for c in self.segments if c.status == "best"]
        return (best or [c for c in self.segments if c.status != "failed"] or self.segments)[-1]

    @property
    def status(self) -> str:
        """The status: "best", "alive" (the node or one below it), "pruned" or "failed"."""
        if any(c.status == "best" for c in self.segments):
            return "best"
        if self.has_survivors or self.on_best_lineage:
            return "alive"
        return "failed" if all(c.status == "failed" for c in self.segments) else "pruned"

    @property
    def seconds(self) -> float:
        """Cost of the node's own segments."""
        return sum(c.seconds for c in self.segments)


def build_growth_tree(run: RunRecord) -> tuple[TreeNode, ...]:
    """Return the roots of the growth tree."""
    best_lineage_ids = frozenset(c.id for c in run.best_lineage)
    roots = [
        _build_node(run, root, best_lineage_ids) for root in run.children_by_parent.get(None, ())
    ]
    return tuple(sorted(roots, key=_node_sort_key))


def _build_node(
    run: RunRecord, first_segment: CandidateRecord, best_lineage_ids: frozenset[str]
) -> TreeNode:
    segments = [first_segment]
    grown: list[CandidateRecord] = []
    while True:
        candidates = run.children_by_parent.get(segments[-1].id, ())
        continuations = sorted(
            (c for c in candidates if c.is_continuation),
            key=lambda c: _segment_sort_key(c, best_lineage_ids),
        )
        grown += [c for c in candidates if c not in continuations[:1]]
        if not continuations:
            break
        segments.append(continuations[0])
    nodes = [_build_node(run, candidate, best_lineage_ids) for candidate in grown]
    children = tuple(sorted(nodes, key=_node_sort_key))
    is_alive = any(c.status in ("best", "alive") for c in segments)
    return TreeNode(
        segments=tuple(segments),
        children=children,
        on_best_lineage=any(c.id in best_lineage_ids for c in segments),
        has_survivors=is_alive or any(child.has_survivors for child in children),
    )


def _segment_sort_key(
    candidate: CandidateRecord, best_lineage_ids: frozenset[str]
) -> tuple[bool, int, float]:
    return (
        candidate.id not in best_lineage_ids,
        STATUS_ORDER[candidate.status],
        math.inf if candidate.score is None else candidate.score,
    )


def _node_sort_key(node: TreeNode) -> tuple[bool, int, float]:
    score = node.representative.score
    return not node.on_best_lineage, STATUS_ORDER[node.status], math.inf if score is None else score
