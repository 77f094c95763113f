"""The command line of a module: its docstring is the help."""

import argparse


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m MODULE`, whose help shows the description as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
