"""What a person typed wrong, told in one line: what, got, expected, what to do."""

import argparse
import difflib
import os
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


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

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; remembers the words, for `error`."""
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if "are required" in message:  # argparse looks for what is missing before it looks for unknown words
            options = [text for text in self._option_string_actions if text.startswith("--")]
            for name in (word.partition("=")[0] for word in self.given if word.startswith("--") and word != "--"):
                if not any(option.startswith(name) for option in options):
                    message = f"unknown option '{name}'{did_you_mean(name, options)}; {message}"
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
    and status 1; Ctrl-C gives status 130. Ends quietly with 1 when whoever reads the output has enough, as `head`."""
    try:
        try:
            status = main(argv) or 0
        finally:
            sys.stdout.flush()  # here, and not when Python ends, a closed pipe can be told from other errors
        return status
    except BrokenPipeError:
        closed = _closed_outputs()
        if not closed:
            raise
        for number in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return 1
    except KeyboardInterrupt:
        return 130
    except (UserError, RunError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def _closed_outputs() -> list[int]:
    """Which of standard output and standard error are pipes that nobody reads any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # POLLERR is always told
    return [number for number, event in poll.poll(0) if event & select.POLLERR]
