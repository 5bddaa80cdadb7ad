"""Charts as SVG images, drawn by pygal. They show nothing that the table beside them does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import tostring

_BARS_MAX = 31  # beyond that, bars are too thin
_LABELS = 8  # on the horizontal axis
# Colours that can be told apart by people who do not see red or green (Okabe and Ito), on white and on black.
_COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#009e73")
_DARK = "@media (prefers-color-scheme: dark) { text { fill: #d0d7de !important } }"


def chart(names: Sequence[str], series: Mapping[str, Sequence[int]], *, stacked: bool = False) -> bytes:
    """Return an SVG image with the numbers of each series by name."""
    import pygal
    from pygal.etree import etree
    from pygal.style import Style

    etree.to_etree()  # pygal uses lxml if it happens to be installed, whose elements `tostring` does not take
    is_bars = len(names) <= _BARS_MAX
    kinds = (pygal.StackedBar, pygal.StackedLine) if stacked else (pygal.Bar, pygal.Line)
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="#57606a",
        foreground_strong="#57606a",
        foreground_subtle="#8c959f",
        colors=_COLOURS,
        font_family="sans-serif",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
        no_data_font_size=18,
        guide_stroke_color="#8c959f",
        major_guide_stroke_color="#8c959f",
    )
    drawn = kinds[not is_bars](
        style=style,
        css=["file://style.css", "file://graph.css", f"inline:{_DARK}"],
        js=[],
        width=900,
        height=300,
        show_dots=False,
        fill=stacked and not is_bars,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(series),
        min_scale=2,
        include_x_axis=True,
        integer_values=True,
        show_minor_x_labels=False,
        truncate_label=-1,  # the default cuts a date after its second character
        x_labels_major_count=min(_LABELS, len(names)) or None,
        no_data_text="–",
        formatter=lambda value: f"{value:,.0f}",
    )
    drawn.x_labels = list(names)
    for name, numbers in series.items():
        drawn.add(name, list(numbers))
    root = drawn.render_tree()
    for parent in root.iter():
        for script in [child for child in parent if str(child.tag).endswith("script")]:
            parent.remove(script)
    return bytes(tostring(root, "utf-8"))
