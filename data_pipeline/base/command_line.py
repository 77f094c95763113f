"""The command line of a module: its docstring is the help."""

import argparse
from collections.abc import Callable


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m MODULE`, whose help shows the description as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: whole numbers from `low`, to `high` if there is one."""
    bounds = f"a whole number from {low}" + (f" to {high}" if high else "")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {bounds}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {bounds}")
        return value

    return parse
