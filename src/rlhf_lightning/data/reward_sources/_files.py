"""What the sources that read files share: one pass that checks every row, then random access to groups."""

from __future__ import annotations

import logging
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.data.row_files import RowFile, open_rows
from rlhf_lightning.data.rows import ON_BAD_ROW, Field, question_number
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.registry import check_choice
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Step

_log = logging.getLogger(__name__)


class FileSource(RewardSource):
    """Judged groups from files.

    Opening reads every row once, checks it and keeps where it stands (about 40 bytes a group); a group is read again
    when it is asked for. So a file may be larger than memory.

    Args:
        path: A file, a folder, a pattern (``part-*.jsonl``), a data set of the hub, or a list of those
            (:func:`rlhf_lightning.data.row_files.open_rows`).
        label: What the groups count as; the format's name when not given.
        on_bad_row: ``error`` refuses a malformed row with its place, field and what was expected; ``skip`` leaves it
            out, counts it in :attr:`skipped` and warns once.
        max_solutions: Most responses of a group, the first ones: fewer are a subset of more.
        prompt_fraction: Share of the questions to use. They are taken in an order that the seed gives, so that a
            smaller share is a subset of a larger one.
        seed: Of that order.
        subset: Configuration of a data set of the hub.
        split: Split of a data set of the hub, or of a saved one; ``train`` when not given.
        cache_dir: Folder that ``datasets`` keeps its files in.

    Raises:
        ConfigError: If a value is out of range.
    """

    name = "file"

    #: What writes such files, for messages.
    written_by = ""

    def __init__(
        self,
        path: str | list[str],
        label: str | None = None,
        on_bad_row: str = "error",
        max_solutions: int | None = None,
        prompt_fraction: float = 1.0,
        seed: int = 0,
        subset: str | None = None,
        split: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        what = f"reward data {self.name}"
        check_choice(on_bad_row, ON_BAD_ROW, f"{what}: on_bad_row")
        if max_solutions is not None and max_solutions < 1:
            raise ConfigError(f"{what}: max_solutions must be at least 1, got {max_solutions}")
        if not 0 < prompt_fraction <= 1:
            raise ConfigError(f"{what}: prompt_fraction must be in (0, 1], got {prompt_fraction}")
        self.path, self.label, self.on_bad_row = path, label or self.name, on_bad_row
        self.max_solutions, self.prompt_fraction, self.seed = max_solutions, prompt_fraction, seed
        self.subset, self.split, self.cache_dir = subset, split, cache_dir
        self.delimiter, self.chat = "\n", False
        self._rows: RowFile | None = None

    @abstractmethod
    def parse(self, fields: Field) -> JudgedGroup | str:
        """The group that a row is, or is part of; if it is sound, but holds nothing to learn from: what is left out.

        That is the name under which :meth:`counts` counts such rows, as ``ties left out``.

        Raises:
            DataError: If the row is malformed.
        """

    def continues(self, group: JudgedGroup, row: JudgedGroup) -> bool:
        """Whether a row has more responses to the group of the rows before it."""
        return False

    def open(self, *, delimiter: str = "\n", chat: bool = False) -> None:
        """Reads and checks all rows once."""
        self.delimiter, self.chat, self.skipped = delimiter, chat, 0
        self._left_out: Counter[str] = Counter()
        try:
            self._rows = open_rows(self.path, subset=self.subset, split=self.split, cache_dir=self.cache_dir)
        except DataError as error:
            raise DataError(f"{error}{self.written_by}") from error
        #: Good rows; where among them each group begins; each group's question.
        self._good, self._starts, self._keys = array("q"), array("q"), array("q")
        self._counts: Counter[str] = Counter()
        tallies = self._scan(self._rows)
        self._keep_questions(tallies)
        self._counts.update(+self._left_out)

    def _scan(self, rows: RowFile) -> list[array[int]]:
        """Finds the groups; gives their numbers of responses, pairs and labelled steps."""
        tallies = [array("q") for _ in _COUNTED]
        for index, row, begins in self._sound(rows):
            if begins:
                self._starts.append(len(self._good))
                self._keys.append(question_number(row.problem))
                for tally in tallies:
                    tally.append(0)
            elif self.max_solutions is not None and tallies[0][-1] >= self.max_solutions:
                continue
            self._good.append(index)
            for tally, count in zip(tallies, _tally(row), strict=True):
                tally[-1] += count
        return tallies

    def _sound(self, rows: RowFile) -> Iterator[tuple[int, JudgedGroup, bool]]:
        """The rows that are not malformed, and whether a group begins there."""
        first = ""
        last: JudgedGroup | None = None
        for index in range(len(rows)):
            try:
                parsed = self._parsed(rows, index)
                if isinstance(parsed, str):
                    self._left_out[parsed] += 1
                    continue
                begins = last is None or not self.continues(last, parsed)
            except DataError as error:
                if self.on_bad_row != "skip":
                    raise
                self.skipped += 1
                first = first or str(error)
                continue
            last = parsed if begins else last
            yield index, parsed, begins
        if self.skipped:
            _log.warning("%d of %d rows are malformed and left out; the first: %s", self.skipped, len(rows), first)
        if last is None:
            others = "".join(f"; {count} {name}" for name, count in (+self._left_out).items())
            why = f"{self.skipped} are malformed; the first: {first}" if first else "none holds anything to learn from"
            why += others
            raise DataError(f"{self.path}: no group in {len(rows)} rows: {why}")

    def _keep_questions(self, tallies: list[array[int]]) -> None:
        """Leaves only the chosen share of the questions, and sums up."""
        self._ends = array("q", [*self._starts[1:], len(self._good)])
        if self.prompt_fraction < 1:
            keys = sorted(set(self._keys), key=lambda key: (derive_seed("prompts", self.seed, key), key))
            chosen = set(keys[: max(1, round(len(keys) * self.prompt_fraction))])
            kept = [i for i, key in enumerate(self._keys) if key in chosen]
            self._starts, self._ends, self._keys, *tallies = (
                array("q", (values[i] for i in kept)) for values in (self._starts, self._ends, self._keys, *tallies)
            )
        self._counts.update({name: sum(tally) for name, tally in zip(_COUNTED, tallies, strict=True)})

    def __len__(self) -> int:
        return len(self._starts)

    def group(self, index: int) -> JudgedGroup:
        """Reads the group's rows."""
        rows = self._rows
        assert rows is not None, "open() comes first"
        parts = [self._parsed(rows, self._good[i]) for i in range(self._starts[index], self._ends[index])]
        groups = [part for part in parts if isinstance(part, JudgedGroup)]
        return replace(groups[0], responses=tuple(response for part in groups for response in part.responses))

    def question_key(self, index: int) -> int:
        """The question's number."""
        return self._keys[index]

    def counts(self) -> Mapping[str, int]:
        """Responses, pairs and labelled steps; and what was left out, if anything."""
        return dict(self._counts)

    def joined(
        self, steps: Sequence[tuple[str, float | None]], *, correct: float | None = None, finished: bool = True
    ) -> JudgedResponse:
        """The response whose steps these are; their ends are offsets, whatever the steps themselves hold.

        A step of nothing but white space is none: it would have no token of its own to be scored at. It is left out
        and counted.

        Args:
            steps: Text and label of each. White space at a text's end belongs to no step.
            correct: Label of the whole.
            finished: Whether the response ends there.
        """
        kept = [(text, label) for text, label in steps if text.strip()]
        self._left_out["empty steps left out"] += len(steps) - len(kept)
        ends, start = [], 0
        for text, label in kept:
            ends.append(Step(start + len(text.rstrip()), label))
            start += len(text) + len(self.delimiter)
        return JudgedResponse(self.delimiter.join(text for text, _ in kept), correct, tuple(ends), finished)

    def _parsed(self, rows: RowFile, index: int) -> JudgedGroup | str:
        row = rows[index]
        group = self.parse(Field.of(row))
        if isinstance(group, str):
            return group
        if any(not response.text and not response.finished for response in group.responses):
            raise DataError(f"{row.place}: a response that was cut off is empty, so there is nothing to score")
        if self.max_solutions is None or group.pairs:
            return group
        return replace(group, responses=group.responses[: self.max_solutions])


_COUNTED = ("responses", "pairs", "labelled steps")


def _tally(group: JudgedGroup) -> tuple[int, int, int]:
    steps = sum(step.label is not None for response in group.responses for step in response.steps)
    return len(group.responses), len(group.pairs), steps
