"""Tables for people, in plain text: columns as wide as their widest cell."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], align: str = "<", indent: str = "") -> list[str]:
    """Return a line per row; `align` has `<` or `>` for each column, the last one for all that follow."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in rows
    )
    return [f"{indent}{line}".rstrip() for line in lines]
