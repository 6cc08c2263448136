"""Text on a terminal: tables, messages, progress bars, and names that come from outside.

A terminal may know only ASCII or Windows' cp1252, or there may be no terminal. A command must work
on all of them, so a character that cannot be written is replaced: "+/-" for ±, "l1" for ℓ₁.
"""

import codecs
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

STAND_INS = {
    "±": "+/-", "−": "-", "–": "-", "—": "-", "─": "-", "×": "x", "·": "*", "≥": ">=", "≤": "<=",
    "→": "->", "✕": "x", "▼": "v", "▲": "^", "Δ": "d", "σ": "sigma", "θ": "theta", "ε": "eps",
    "α": "alpha", "“": '"', "”": '"', "’": "'", "√": "sqrt", "∈": "in", "‖": "||",
}  # fmt: skip
# Control and format characters, lone surrogates, unassigned ones, line and paragraph separators.
HARMFUL = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def shown(text: object) -> str:
    """Text from outside (a path, a name in a file), made safe to show on a terminal or a page.

    Control characters could move the cursor, ring the bell or turn the direction of writing.
    Each becomes its escape, such as \\x1b, and so does a newline: what is shown is one line.

    text      anything; `str` of it is taken
    Returns   str of printable characters
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HARMFUL
        else character
        for character in str(text)
    )


def counted(number: int, noun: str) -> str:
    """A number of things as text: "1 seed", "2 seeds", "1,000 seeds".

    number    how many
    noun      in the singular
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(heads: Sequence, rows: Sequence, align: str = "l") -> str:
    """Rows and columns as text, columns as wide as their widest cell.

    heads     headings of the columns; empty: no headings
    rows      lists of cells; None instead of a row makes a rule
    align     a letter for each of the first columns: "l" for left, "r" for right. All columns
              after them are aligned right
    Returns   lines joined by newlines; every cell made harmless by `shown`, but for spaces
    """
    lines = [row and [shown(cell) for cell in row] for row in ([heads, None] if heads else [])]
    lines += [row and [shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*filter(None, lines), strict=True)]

    def text(cells):
        if cells is None:
            return "  ".join("─" * width for width in widths)
        aligned = [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(cells, widths, align.ljust(len(cells), "r"), strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join(map(text, lines))


def say(*lines: object) -> None:
    """Write messages to stderr, one line each; nothing where there is no stderr.

    lines   anything; `shown` makes text of each
    """
    if _is_open(sys.stderr):
        for line in lines:
            print(shown(line), file=sys.stderr)


def progress(iterable: Iterable | None = None, quiet: bool = False, **settings: Any) -> Any:
    """A tqdm progress bar: on a terminal's stderr, or below the cell of a notebook, else hidden.

    iterable   what it goes through, or None: `update` is called
    quiet      no bar in any case
    settings   tqdm's: desc, total, unit, …
    Returns    a tqdm bar
    """
    from tqdm import tqdm

    if _in_notebook():
        settings = {"file": _BelowCell(), "ncols": 80, "mininterval": 0.3} | settings
        return tqdm(iterable, disable=quiet, **settings)
    seen = _is_open(sys.stderr) and getattr(sys.stderr, "isatty", lambda: False)()
    return tqdm(iterable, disable=quiet or not seen, **settings)


def _in_notebook():
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class _BelowCell:
    """A file for one progress bar: a line below a notebook's cell. Each text replaces the last one.
    Text on stderr would be red, and would stay.
    """

    encoding = "utf-8"

    def __init__(self):
        self.line = None

    def write(self, text):
        shown = {"text/plain": text.strip()}
        if self.line is not None and text != "\n":  # the end of a bar that is to stay
            self.line.update(shown, raw=True)
        elif shown["text/plain"]:
            from IPython.display import display

            self.line = display(shown, raw=True, display_id=True)

    def flush(self):
        pass


def prepare_streams() -> None:
    """Make stdout and stderr take any text. Text for a closed stream is dropped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not _is_open(stream):
            # Now: otherwise the next file that is opened would get the free number 1 or 2.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="minires")


def _is_open(stream):
    return stream is not None and not getattr(stream, "closed", False)


def _stand_in(error):
    """The text for characters that an encoding lacks; an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = []
    for character in error.object[error.start : error.end]:
        plain = STAND_INS.get(character)
        if plain is None and unicodedata.decomposition(character).startswith("<"):
            plain = unicodedata.normalize("NFKD", character)  # ℓ₁ is l1, … is ...
        # Anything else becomes its escape, as in JSON: two names must not become the same.
        found.append(plain if plain and plain.isascii() else json.dumps(character)[1:-1])
    return "".join(found), error.end


codecs.register_error("minires", _stand_in)
