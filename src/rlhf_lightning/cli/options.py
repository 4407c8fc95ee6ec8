"""The words of a command line as options: ``--a.b=c``, ``--a.b c`` or a switch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_lightning.cli.document import Key
from rlhf_lightning.configfiles import shipped_configs
from rlhf_lightning.errors import ConfigError

SWITCHES = re.compile(r"^(-h|--help|--print_config(=.*)?)$")
"""Options that take no value."""

CONFIG = ("-c", "--config")
"""Options that name a configuration file."""


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    Attributes:
        name: As written, dashes included.
        value: What follows it, None for a switch.
        words: The words it was made of.
    """

    name: str
    value: str | None
    words: tuple[str, ...]

    @property
    def key(self) -> Key:
        """The key it sets, as written."""
        return tuple(self.name.removeprefix("--").removesuffix("+").split("."))

    def valued(self, value: str) -> list[str]:
        """The same option with another value."""
        return [f"{self.name}={value}"]

    def config(self) -> str:
        """The configuration that the option names.

        Raises:
            ConfigError: If it names none.
        """
        if not self.value:
            raise ConfigError(f"{self.name} needs a name. Shipped: {', '.join(shipped_configs()) or 'none'}")
        return self.value


def split_options(words: Sequence[str]) -> Iterator[Option]:
    """The options that a command line is made of, in order; a word that is none is one without a value."""
    position = 0
    while position < len(words):
        word = words[position]
        takes_next = position + 1 < len(words) and not words[position + 1].startswith("--")
        if not word.startswith("-") or SWITCHES.match(word):
            yield Option(word, None, (word,))
        elif word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            yield Option(name, value, (word,))
        elif takes_next:
            yield Option(word, words[position + 1], (word, words[position + 1]))
            position += 1
        else:
            yield Option(word, None, (word,))
        position += 1
