"""What a person typed wrong, told in one line: what, got, expected, what to do."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class UserError(ValueError):
    """Bad input by a person. Its text is one line; command lines print it and exit with status 2."""


class RunError(Exception):
    """A run that cannot go on: a full disk, weights that are no numbers. One line; command lines exit with status 1."""


class NotFiniteError(RunError):
    """A loss or a bound that is no number: training has diverged."""


class DiskError(RunError):
    """A disk that is full or not writable."""


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The tail of a message about an unknown word: ``; did you mean 'mamba'?`` or nothing."""
    close = difflib.get_close_matches(str(word), list(options), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(what: str, got: str, options: Iterable[str]) -> UserError:
    """The error for a word that is none of `options`: ``mixer: no variant 'mamba22'; expected one of ...``."""
    options = sorted(options)
    return UserError(f"{what} '{got}'; expected one of {', '.join(options)}{did_you_mean(got, options)}")


def run_command(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Run a command line: a `UserError` becomes one line on standard error and exit status 2, a `RunError` one line
    and status 1; Ctrl-C gives status 130."""
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        return 130
    except (UserError, RunError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
