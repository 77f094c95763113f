"""A Markdown page of which some blocks are made again, and all else is written by hand."""

import re
from collections.abc import Mapping, Sequence

from data_pipeline.base.errors import InputError
from tools.results.run_folder import Row

NEW_PAGE = """\
# Results

`python -m tools.results` makes the tables from run folders; all else here is written by hand, and stays. In brackets is
an interval at 95 %: beside the score of one run Wilson's over its inputs, what other inputs might have given with the
same weights; beside a mean over seeds Student's, what other seeds might have given on the same inputs (it knows nothing
of 0 and 100 %, and is wide where seeds are few and differ). A difference is taken seed by seed. Minutes are of training
alone, without evaluations, the mean over seeds. Parameters are without the puzzle table. `NAME@TRAIN+TEST` names the
puzzles of both splits and their hashes (docs/data.md).
"""


def with_blocks(page: str, blocks: Mapping[str, str], origin: str) -> str:
    """Return a page with blocks put in the place of those of the same name, new ones at its end."""
    for name, content in blocks.items():
        begin, end = f"<!-- tools.results: {name} -->", f"<!-- end of {name} -->"
        block = f"{begin}\n{content.strip()}\n{end}"
        counts = page.count(begin), page.count(end)
        if counts == (0, 0):
            page = f"{page.rstrip()}\n\n## {name}\n\n{block}\n"
        elif counts == (1, 1) and page.index(begin) < page.index(end):
            before, after = page.split(begin)[0], page.split(end)[1]
            page = f"{before}{block}{after}"
        else:
            raise InputError(
                f"{origin}: {begin} and {end} must stand there once each, in this order; or take both out."
            )
    return page


def table_text(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table, without columns that are empty."""
    heads = [head for head in dict.fromkeys(head for row in rows for head in row) if _found(rows, head)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    return "\n".join([*lines, *(_line([_cell(row.get(head, "")) for head in heads]) for row in rows)])


def common_facts(rows: Sequence[Row]) -> Row:
    """Return the cells that all rows have in common, but for empty ones."""
    heads = dict.fromkeys(head for row in rows for head in row)
    return {head: found[0] for head in heads if len(found := _found(rows, head)) == 1}


def _found(rows: Sequence[Row], head: str) -> list[str]:
    """Return the different values of a column; empty cells are of what is not known yet."""
    return list(dict.fromkeys(row[head] for row in rows if row.get(head)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
