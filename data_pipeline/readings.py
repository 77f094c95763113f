"""What was read from each source of a dataset, as a table for people."""

from collections.abc import Sequence
from textwrap import wrap

from data_pipeline.base.table import table
from data_pipeline.schema import LeftOut, SourceReading

MAX_NAMED = 5
"""Names listed of what was left out; its number is always told."""

_WIDTH = 100  # columns


def left_out(why: str, names: Sequence[str]) -> LeftOut:
    """Return what a dataset says of tasks or files that are not in it."""
    shown = (name if name.isprintable() else ascii(name)[1:-1] for name in sorted(names)[:MAX_NAMED])
    return LeftOut(why=why, num=len(names), names=tuple(shown))


def reading_table(readings: Sequence[SourceReading]) -> list[str]:
    """Return a row per source, and below it what was left out of it and why; nothing where there is no source."""
    if not readings:
        return []
    rows: list[tuple[str, ...]] = [("source", "tasks", "trained on", "held out", "left out")]
    for reading in readings:
        counts = (reading.num_tasks, reading.num_trained, reading.num_held_out)
        rows.append((reading.source, *(f"{n:,}" for n in counts), f"{_total(reading.left_out):,}"))
    lines = table(rows, "<>", indent="  ")
    for reading in readings:
        notes = [f"left out: {told(some)}" for some in reading.left_out]
        if reading.num_without_output:
            notes.append(
                f"held out with hidden outputs, so predicted but not scored: {reading.num_without_output:,}"
            )
        notes += [f"not read: {told(some)}" for some in reading.not_read]
        for note in notes:
            lines += wrap(
                f"  {reading.source}: {note}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False
            )
    return lines


def _total(some: Sequence[LeftOut]) -> int:
    return sum(one.num for one in some)


def told(some: LeftOut) -> str:
    """Return the number, the reason and the first names."""
    names = ", ".join(some.names) + (", ..." if some.num > len(some.names) else "")
    return f"{some.num:,} {some.why}" + (f" ({names})" if some.names else "")
