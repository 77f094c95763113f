"""The page itself."""

import html

from tools.report.payload import Report


def render(report: Report) -> str:
    """Return the page of a report."""
    data = report.model_dump_json().replace("<", "\\u003c")
    title = html.escape(report.title)
    return f'<!doctype html>\n<title>{title}</title>\n<script type="application/json">{data}</script>\n'
