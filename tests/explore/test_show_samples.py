import re
from html.parser import HTMLParser

import pytest

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.runs.sample_page import ABOVE, BELOW, QUANTITIES, STRONGEST, Page, safe, show_samples, tint

from .hand_made import SAMPLES, make_run, sample, without

NASTY = "<script>alert('x')</script> <img src=x onerror=\"y\"> $a$ &amp; \x1b[0m \u202e \ud800"


class Reader(HTMLParser):
    """The tags, the text inside ``pre`` and the token spans' backgrounds of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.blocks: list[str] = []
        self.backgrounds: list[str] = []
        self.titles: list[str] = []
        self.facts = re.findall('<div class="facts">(.*?)</div>', html)
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        if tag == "pre":
            self.inside = True
            self.blocks.append("")
        if given.get("class") == "t":
            self.backgrounds.append(given["style"].removeprefix("background:"))
            self.titles.append(given["title"])
        assert not any(name.startswith("on") for name in given)

    def handle_endtag(self, tag):
        self.inside &= tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.blocks[-1] += data


def responses(page: Page) -> list[str]:
    return Reader(page.html).blocks[1::2]  # each after its prompt


def test_the_best_come_first_or_the_worst(tmp_path):
    run = make_run(tmp_path)
    assert responses(show_samples(run, color=None)) == ["<b>&\"'", "2\n", "plain"]
    assert responses(show_samples(run, color=None, worst=True, count=1)) == ["plain"]
    assert responses(show_samples(run, by="advantage", color=None, count=1)) == ["plain"]
    assert responses(show_samples(run, color=None, rollout=0)) == ["2\n", "plain"]


def test_every_token_has_its_colour_and_numbers(tmp_path):
    read = Reader(show_samples(make_run(tmp_path), color="log_ratio", limit=1.0, rollout=0, count=1).html)
    assert read.blocks[1] == "2⏎\n▪"  # the line feed is shown, and the end of the response, which has no text
    assert read.backgrounds == ["rgba(234,88,12,0.250)", "rgba(37,99,235,0.000)", "transparent"]
    assert "exact 0.25" in read.facts[0] and "reward after transforms 1" in read.facts[0]
    assert "log_ratio 0.5 nats" in read.titles[0] and "value 0.5 reward" in read.titles[0]


def test_the_ends_of_the_scale():
    strongest = f"{STRONGEST:.3f}"
    assert tint(2.0, 2.0) == tint(50.0, 2.0) == f"rgba({','.join(map(str, ABOVE))},{strongest})"
    assert tint(-2.0, 2.0) == tint(-50.0, 2.0) == f"rgba({','.join(map(str, BELOW))},{strongest})"
    assert tint(0.0, 2.0).endswith(",0.000)") and tint(0.0, 0.0).endswith(",0.000)")
    assert tint(float("nan"), 2.0) == "transparent"


def test_the_legend_says_what_and_where_it_ends(tmp_path):
    page = show_samples(make_run(tmp_path), color="value", count=3).html
    assert "value before the token" in page and "(reward)" in page
    assert "≤ −1 " in page and "≥ 1<" in page  # the largest 2 % of five values: the largest, 1
    assert re.search(r"k3 estimate.*\(nats\): 0 <", show_samples(make_run(tmp_path, "b"), color="kl_k3").html)


def test_rounding_gets_no_strong_colour(tmp_path):
    same = {**SAMPLES[2], "ref_logprobs": [-2.0000001, -0.2500001]}
    page = show_samples(make_run(tmp_path, samples=[same])).html
    assert Reader(page).backgrounds == ["rgba(234,88,12,0.000)"] * 2 and "≥ 0.001<" in page


def contrast(text: float, *background: float) -> float:
    """WCAG 2.2, of a grey text (0 to 255) on a background."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance([text] * 3), luminance(background)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("end", [ABOVE, BELOW])
@pytest.mark.parametrize(("text", "page"), [(33, 255), (0, 255), (212, 30), (225, 17)])
def test_text_is_legible_on_the_strongest_colour_in_light_and_dark(end, text, page):
    mixed = [STRONGEST * colour + (1 - STRONGEST) * page for colour in end]
    assert contrast(text, *mixed) >= 4.5


@pytest.mark.parametrize("color", [None, "log_ratio"])
def test_text_of_a_model_is_shown_and_never_obeyed(tmp_path, color):
    nasty = {**SAMPLES[0], "response": NASTY, "prompt": NASTY, "answer": NASTY, "tokens": [NASTY, "", "$b$"]}
    page = show_samples(make_run(tmp_path, samples=[nasty]), color=color)
    read = Reader(page.html)
    assert read.tags <= {"style", "div", "pre", "span", "b", "p", "br"}
    shown = NASTY.replace("\x1b", "␛").replace("\ud800", "\ufffd")
    assert read.blocks[0] == shown and read.blocks[1].startswith(shown)
    assert "mathjax_ignore" in page.html
    saved = page.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.html in saved and page._repr_html_() == page.html


def test_control_characters_are_seen():
    assert safe("a\x00\x7f\x85\tb\nc") == "a␀␡\ufffd\tb\nc"


def test_what_was_not_measured_is_named_with_what_would(tmp_path):
    run = make_run(tmp_path, samples=without("ref_logprobs", "values"))
    with pytest.raises(RunFolderError, match=r"no 'log_ratio': it had no reference .*They have: advantage, logprob"):
        show_samples(run)
    with pytest.raises(RunFolderError, match="no 'value': it had no critic"):
        show_samples(run, color="value")
    with pytest.raises(RunFolderError, match="logged no tokens"):
        show_samples(make_run(tmp_path, "plain", samples=[sample(0, "a", 1.0)]))


def test_mistakes_are_answered_with_what_there_is(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match="log_ratio"):
        show_samples(run, color="log_ratios")
    with pytest.raises(ConfigError, match="advantage"):
        show_samples(run, by="advantages")
    with pytest.raises(ConfigError, match="count must be at least 1"):
        show_samples(run, count=0)
    with pytest.raises(ConfigError, match="limit must be above 0"):
        show_samples(run, limit=0.0)
    with pytest.raises(RunFolderError, match=r"no samples of rollout 7, only of \[0, 1\]"):
        show_samples(run, rollout=7)


def test_every_quantity_can_be_shown(tmp_path):
    run = make_run(tmp_path)
    for name in QUANTITIES:
        assert len(Reader(show_samples(run, color=name).html).backgrounds) == 5
