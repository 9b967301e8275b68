"""What every command shares: how it talks to a person and to a program, and how a prompt comes in.

What a program may read goes to stdout (a path, JSON lines), what a person reads to stderr.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from ovi_studio.errors import PromptError

MAX_STDIN_BYTES = 1 << 20  # guessed: far beyond the longest prompt, far below what would hurt


def say(text: str) -> None:
    """One line to the person, whatever the text holds."""
    print(f"ovi-studio: {' '.join(text.split())}", file=sys.stderr, flush=True)  # noqa: T201


def print_line(line: str | Path) -> None:
    """A line on stdout in its encoding, whatever it holds; of a path the very bytes: not every name is text."""
    if sys.stdout is None:  # closed by whoever started us: nobody reads it
        return
    encoding = sys.stdout.encoding or "utf-8"
    data = os.fsencode(line) if isinstance(line, Path) else line.encode(encoding, "backslashreplace")
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def read_prompt(argument: str) -> str:
    """The prompt itself, or standard input where it is `-`."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise PromptError("There is no standard input.", "Give the prompt itself.")
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise PromptError("Standard input is too long for a prompt.", "Pass at most a page of text.")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PromptError("Standard input is not UTF-8 text.", "Pass a text file.") from error


class TerminalLine:
    """A line on a terminal's stderr that is written over and over; where there is no terminal, nothing."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self._width = 0  # of what now stands there

    def write(self, text: str) -> None:
        """The line says this now; "" wipes it."""
        if self.on_terminal:
            print(f"\r{text:<{self._width}}\r{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
            self._width = len(text)

    def say(self, text: str) -> None:
        """`say`, above the line."""
        self.write("")
        say(text)


def minutes(seconds: float) -> str:
    """`2:05`."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def size_text(count: float) -> str:
    """Bytes for a person, in decimal units as shops and hubs give them."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Parser(argparse.ArgumentParser):
    """Wrong arguments end in one line, as every other error does."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and ends the process."""
        say(f"{message}. See {self.prog} --help.")
        sys.exit(2)
