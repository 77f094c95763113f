"""Pictures look the same for everybody, and need no screen, notebook or home folder."""

import os
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def plain_matplotlib() -> Generator[None]:
    """Draw with matplotlib's own settings: not the user's, nor the backend that a notebook has named for its processes.

    Import matplotlib within the block alone: it refuses to be imported where that backend is not installed.
    """
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib

    with matplotlib.rc_context():  # pyright: ignore[reportUnknownMemberType]
        matplotlib.rcdefaults()
        yield
