"""Half of a patch: what an agent leaves that solved a part of the task. It still applies."""

from __future__ import annotations

import unidiff


def half_patch(patch: str) -> str:
    """``patch`` without its largest hunk, or with half of the changes of its only one.

    Raises:
        ValueError: the patch has no hunk to take away from.
    """
    files = unidiff.PatchSet(patch)
    hunks = [(file, hunk) for file in files for hunk in file]
    if not hunks:
        raise ValueError("a patch without hunks has no half")
    file, hunk = max(hunks, key=lambda pair: pair[1].added + pair[1].removed)
    position = list(file).index(hunk)
    if len(hunks) == 1:
        file[position] = _half_hunk(hunk)
    elif len(file) > 1:
        del file[position]
    else:
        files.remove(file)
    return str(files)


def _half_hunk(hunk: unidiff.Hunk) -> unidiff.Hunk:
    """The first half of the changed lines; of the others, additions go and removals stay."""
    num_kept = (hunk.added + hunk.removed) // 2
    lines: list[tuple[str, str]] = []
    for line in hunk:
        kind = line.line_type
        if kind in "+-" and line.value.strip():
            num_kept -= 1
            if num_kept < 0:
                kind = " " if kind == "-" else ""
        if kind:
            lines.append((kind, line.value))
    num_old, num_new = (sum(kind in f" {sign}" for kind, _ in lines) for sign in "-+")
    head = f"@@ -{hunk.source_start},{num_old} +{hunk.target_start},{num_new} @@\n"
    name = "--- a/x\n+++ b/x\n"
    body = "".join(kind + value for kind, value in lines)
    return unidiff.PatchSet(name + head + body)[0][0]
