"""The page itself: one file, which a browser opens from disk without a network.

Its parts lie in page/: page.html around all, style.css, and the scripts in the order of SCRIPTS, which a newcomer may
read in that order too. The report travels in it as JSON, packed by gzip; the browser unpacks it.
"""

import base64
import gzip
from pathlib import Path

import jinja2
from markupsafe import Markup

from tools.report.payload import Report

PAGE = Path(__file__).parent
SCRIPTS = (
    "elements", "address", "data", "words", "statuses", "grid", "scores", "facts", "curves", "curve_panel", "filters",
    "filter_bar", "matrix", "list", "answer", "puzzle", "trajectory", "player", "keys", "main",
)  # fmt: skip


def render(report: Report) -> str:
    """Return the whole page as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_part("page.html")).render(
        title=report.title,
        style=Markup(_part("style.css")),
        script=Markup(_script()),
        payload=_packed(report),
    )


def _script() -> str:
    """Return all scripts as one, whose names are seen by no other script."""
    parts = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();'


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8").strip()


def _packed(report: Report) -> str:
    """Return the report in ASCII; the same report gives the same bytes."""
    return base64.b64encode(gzip.compress(report.model_dump_json().encode(), mtime=0)).decode()
