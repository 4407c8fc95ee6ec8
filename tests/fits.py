"""Whether all texts of a figure lie in it, and its titles apart."""

from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text


def assert_texts_fit(figure: Figure) -> None:
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    for axes in figure.axes:  # ticks beyond the axis' ends are never drawn
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            hidden = {id(label) for tick in ticks for label in (tick.label1, tick.label2)} - shown
            texts = [text for text in texts if id(text) not in hidden]
    assert texts
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text.get_text()!r} at {box} is not within {figure.bbox}"
    titles = [t for axes in figure.axes for t in (axes.title, axes._left_title, axes._right_title)]
    titles += [t for t in (figure._suptitle, figure._supxlabel) if t is not None]
    titles += [axes.xaxis.label for axes in figure.axes] + [axes.yaxis.label for axes in figure.axes]
    for one, other in combinations([t for t in titles if t.get_text().strip()], 2):
        apart = not one.get_window_extent(renderer).overlaps(other.get_window_extent(renderer))
        assert apart, f"{one.get_text()!r} lies over {other.get_text()!r}"
