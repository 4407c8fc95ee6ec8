"""A piece of HTML that a notebook shows and that can be written to a file; and how text of a model goes into it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass(frozen=True)
class Page:
    """HTML.

    Attributes:
        html: The body.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path, *, title: str = "samples") -> Path:
        """Writes it as a file that a browser opens, in the reader's light or dark theme.

        Args:
            path: Where to.
            title: The window's title.
        """
        head = (
            f'<!doctype html><html><head><meta charset="utf-8"><title>{safe(title)}</title>'
            "<style>:root{color-scheme:light dark}body{margin:1.5rem;max-width:70rem}</style></head>"
        )
        Path(path).write_text(f"{head}<body>{self.html}</body></html>\n", encoding="utf-8")
        return Path(path)


def safe(text: str) -> str:
    """Text as HTML that shows it: nothing in it is markup, and control characters are seen instead of obeyed."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return html.escape(whole.translate(_CONTROLS), quote=True)
