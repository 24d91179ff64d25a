"""Figures with interactive plots.

A plot is JSON-able: {'x': [n], 'xname', 'yname', 'series': [{'name', 'mean': [n], 'low': [n], 'high': [n]}]}, where
low and high (the band) may be absent, `dots` draws points without a line, and `colour` is an index into the palette.
"""
import html
import math


def figure(name, choices, caption, *, log_y=False, smoothing=False):
    """Returns a figure as HTML, with a menu of its plots.

    name: the figure's key in the plots of `document.render`. choices: {choice: label in the menu}. log_y: whether the
    y axis starts logarithmic. smoothing: whether to offer a slider that averages over steps.
    """
    options = ''.join(f'<option value="{choice}">{html.escape(label)}</option>' for choice, label in choices.items())
    axis = f'<label><select name="axis">{options}</select></label>' if len(choices) > 1 else ''
    slider = '<label>smoothing <input type="range" name="smooth" min="0" max="0.98" step="0.02" value="0.6"></label>'
    return (f'<figure data-plot="{name}"><div class="controls">{axis}'
            '<label><input type="checkbox" name="logx" checked>log x</label>'
            f'<label><input type="checkbox" name="logy"{" checked" if log_y else ""}>log y</label>'
            f'{slider if smoothing else ""}'
            '<span><button type="button" name="png">Save PNG</button> '
            '<button type="button" name="svg">Save SVG</button></span></div>'
            f'<div class="plot"></div><figcaption>{html.escape(caption)} Hover or touch for values; click a name to '
            'hide it; drag to zoom, double-click to reset.</figcaption></figure>')


def by_axis(plots):
    """Returns {choice: menu label} of {choice: plot} that differ in their x axis."""
    return {choice: f'against {plot["xname"]}' for choice, plot in plots.items()}


def rounded(values):
    """Returns [n] as a list of numbers with 6 significant digits, None where not finite."""
    return [float(f'{value:.6g}') if math.isfinite(value) else None for value in values]
