"""What the demo shows. Colours only for a terminal, and never with NO_COLOR."""

import os
import sys

COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(code, text):
    """The text in a colour, if there are colours."""
    return f"\033[{code}m{text}\033[0m" if COLOURED else text


def bold(text):
    return paint("1", text)


def dim(text):
    return paint("2", text)


def green(text):
    return paint("32", text)


def red(text):
    return paint("31", text)


def say(text=""):
    """One line, at once: who pipes the output wants to see it as it happens."""
    print(text, flush=True)


def shorten(text, width):
    """The text on one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def size(byte_count):
    """A size for people."""
    return f"{byte_count / 2**20:.1f} MiB" if byte_count >= 2**20 else f"{byte_count / 2**10:.0f} KiB"
