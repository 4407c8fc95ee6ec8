"""Responses of a run for notebooks, with their tokens coloured."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.registry import check_choice
from rlhf_lightning.runs import Run

RUN_COLORS = ("#1f5fa8", "#c2410c", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f", "#64748b")
"""One a run, the first again after the last."""

ABOVE, BELOW = (234, 88, 12), (37, 99, 235)
"""Red, green and blue of the two ends; people who are colour-blind tell these two apart."""

STRONGEST = 0.5
"""Opacity at the ends."""


@dataclass(frozen=True)
class Quantity:
    """What tokens can be coloured by.

    Attributes:
        column: Its column in a run's tokens.
        title: What it is, for the legend.
        unit: Its unit ("" for none).
        lacking: Why a run may not have it.
        signed: Whether it can be below zero.
    """

    column: str
    title: str
    unit: str
    lacking: str
    signed: bool = True


_NO_REFERENCE = "had no reference (give it a KL term)"

QUANTITIES = {
    quantity.column: quantity
    for quantity in (
        Quantity(
            "log_ratio", "log-ratio of policy to reference, log π(token) − log π_ref(token)", "nats", _NO_REFERENCE
        ),
        Quantity("kl_k1", "KL to the reference, k1 estimate (for one token, the log-ratio)", "nats", _NO_REFERENCE),
        Quantity("kl_k3", "KL to the reference, k3 estimate (never negative)", "nats", _NO_REFERENCE, signed=False),
        Quantity("value", "critic's value before the token", "reward", "had no critic (PPOModule has one)"),
        Quantity("advantage", "advantage of the token, as the loss weighs it", "", "logged none"),
        Quantity("logprob", "log-prob under the policy that sampled", "nats", "logged none"),
    )
}
"""By column."""


def tint(value: float, limit: float) -> str:
    """The background of a value: clear at 0, strongest at ``limit`` and beyond; clear if it is not a number.

    Args:
        value: The number.
        limit: Where the scale ends; positive.
    """
    if math.isnan(value):
        return "transparent"
    red, green, blue = ABOVE if value > 0 else BELOW
    share = 0.0 if limit <= 0 else min(abs(value) / limit, 1.0)
    return f"rgba({red},{green},{blue},{STRONGEST * share:.3f})"


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


ORDERS = ("reward", "advantage")

_LEAST_END = 1e-3

_STYLE = """<style>
.rlhf-samples{font:14px/1.6 system-ui,sans-serif;color:inherit}
.rlhf-samples pre{font:13px/1.9 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
margin:.35rem 0;padding:.5rem .75rem;border:1px solid rgba(128,128,128,.35);border-radius:6px;background:none;
color:inherit;text-align:left}
.rlhf-samples pre.prompt{border:none;padding:0;margin-bottom:0}
.rlhf-samples span.t{unicode-bidi:isolate;padding:.15em 0;margin-right:1px;border-bottom:1px solid rgba(128,128,128,.6)}
.rlhf-samples .facts,.rlhf-samples .note{opacity:.8;font-size:13px}
.rlhf-samples .bar{display:inline-block;width:16rem;max-width:40%;height:.9em;border-radius:3px;vertical-align:-.1em;
border:1px solid rgba(128,128,128,.45);margin:0 .5em}
.rlhf-samples .mark{opacity:.55}
</style>"""

_FACTS = {
    "reward": "reward after transforms",
    "advantage": "advantage",
    "length": "tokens",
    "answer": "reference answer",
}


def show_samples(
    run: Run,
    by: str = "reward",
    color: str | None = "log_ratio",
    *,
    count: int = 6,
    worst: bool = False,
    rollout: int | None = None,
    limit: float | None = None,
) -> Page:
    """The responses with the highest reward or advantage, their tokens coloured. Hold the mouse over one for numbers.

    Args:
        run: The run.
        by: ``reward`` or ``advantage`` (mean over the response's tokens): the order.
        color: ``log_ratio``, ``kl_k1``, ``kl_k3``, ``value``, ``advantage`` or ``logprob``; None for plain text, which
            any run's samples have.
        count: How many.
        worst: The lowest first.
        rollout: Of this rollout alone; of all when not given.
        limit: Where the colours end, in the quantity's unit; when not given, where the largest 2 % of what is shown
            begin, but not below 0.001: what is smaller everywhere is rounding, and gets no strong colour.

    Raises:
        ConfigError: If ``by`` or ``color`` is no such thing, or ``count`` or ``limit`` is not above 0.
        RunFolderError: If the run did not log what is asked for: says what would have made it.
    """
    _check(by, color, count, limit)
    chosen = _ordered(run, by, worst=worst, rollout=rollout).head(count)
    if color is None:
        bodies = {sample: safe(str(record["response"])) for sample, record in chosen.iterrows()}
        return _page(chosen, bodies, legend="")
    quantity = QUANTITIES[color]
    tokens = _tokens(run, quantity)
    tokens = tokens[tokens["sample"].isin(chosen.index)]
    end = limit or _end(tokens[color])
    bodies = {
        sample: "".join(_token(row, quantity, end) for row in _records(own)) for sample, own in _by_sample(tokens)
    }
    return _page(chosen, bodies, legend=_legend(quantity, end))


def _check(by: str, color: str | None, count: int, limit: float | None) -> None:
    check_choice(by, ORDERS, "by")
    if color is not None:
        check_choice(color, tuple(QUANTITIES), "color")
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    if limit is not None and not limit > 0:
        raise ConfigError(f"limit must be above 0, got {limit}")


def _ordered(run: Run, by: str, *, worst: bool, rollout: int | None) -> pd.DataFrame:
    samples = run.samples
    if by not in samples.columns:
        raise RunFolderError(f"the samples of run {run.path} have no {by!r}: only rollouts of a policy have")
    if rollout is not None:
        known = sorted(set(samples["rollout"]))
        samples = samples[samples["rollout"] == rollout]
        if samples.empty:
            raise RunFolderError(f"run {run.path} logged no samples of rollout {rollout}, only of {known}")
    return samples.sort_values(by, ascending=worst, kind="stable")


def _tokens(run: Run, quantity: Quantity) -> pd.DataFrame:
    if quantity.column not in run.tokens.columns:
        have = ", ".join(name for name in QUANTITIES if name in run.tokens.columns)
        raise RunFolderError(
            f"the tokens of run {run.path} have no {quantity.column!r}: it {quantity.lacking}. They have: {have}"
        )
    return run.tokens


def _end(values: pd.Series) -> float:
    sizes = values.abs().dropna()
    return max(float(sizes.quantile(0.98, interpolation="higher")), _LEAST_END) if len(sizes) else _LEAST_END


def _by_sample(tokens: pd.DataFrame) -> Any:
    return tokens.groupby("sample", sort=False)


def _records(tokens: pd.DataFrame) -> list[dict[str, Any]]:
    return tokens.to_dict("records")


def _token(row: dict[str, Any], quantity: Quantity, end: float) -> str:
    """One token; a line feed is shown, and one without text of its own gets a mark."""
    text = safe(row["token"]).replace("\n", '<b class="mark">⏎</b>\n') or '<b class="mark">▪</b>'
    numbers = [
        f"{name} {_number(row[name])} {known.unit}".rstrip() for name, known in QUANTITIES.items() if name in row
    ]
    title = safe(f"token {row['position']} {row['token']!r}\n" + "\n".join(numbers))
    return f'<span class="t" style="background:{tint(row[quantity.column], end)}" title="{title}">{text}</span>'


def _legend(quantity: Quantity, end: float) -> str:
    above, below = (f"rgba({r},{g},{b},{STRONGEST})" for r, g, b in (ABOVE, BELOW))
    first, low = (below, f"≤ {_number(-end)} ") if quantity.signed else ("transparent", "0 ")
    middle = "transparent," if quantity.signed else ""
    unit = f" ({quantity.unit})" if quantity.unit else ""
    return (
        f'<p><b>{safe(quantity.title)}</b>{unit}: {low}<span class="bar" '
        f'style="background:linear-gradient(90deg,{first},{middle}{above})"></span>≥ {_number(end)}</p>'
        '<p class="note">Each box is a token; hold the mouse over it for its numbers. ⏎ is a line feed, '
        "▪ a token without text of its own, such as the end of the response.</p>"
    )


def _page(chosen: pd.DataFrame, bodies: dict[Any, str], *, legend: str) -> Page:
    shown = [_sample(record, bodies.get(sample, "")) for sample, record in chosen.iterrows()]
    # The class names keep MathJax, which notebooks run over their outputs, away from a model's dollar signs.
    opening = '<div class="rlhf-samples mathjax_ignore tex2jax_ignore">'
    return Page(f"{_STYLE}{opening}{legend}{''.join(shown)}</div>")


def _sample(record: pd.Series, body: str) -> str:
    facts = [f"rollout {record['rollout']}"]
    scores = record.get("scores")
    facts += [f"{name} {_fact(value)}" for name, value in scores.items()] if isinstance(scores, dict) else []
    facts += [f"{label} {_fact(record[name])}" for name, label in _FACTS.items() if name in record.index]
    cut = record.get("finished", True) is False or record.get("finished", True) == 0
    facts += ["cut off at its limit"] if cut else []
    prompt = f'<pre class="prompt">{safe(str(record["prompt"]))}</pre>' if "prompt" in record.index else ""
    line = safe(" · ".join(facts))
    return f'<div class="facts">{line}</div>{prompt}<pre>{body}</pre><br>'


def _fact(value: Any) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
