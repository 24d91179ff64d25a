"""The HTML file of a page: style, plot data, uPlot and the script that draws, all inside it."""
import functools
import html
import json
from importlib import resources
from pathlib import Path
from string import Template

from lm.config import Error

ESCAPES = {'<': '\\u003c', '>': '\\u003e', '&': '\\u0026'}


def render(title, body, plots):
    """Returns a page as the text of one HTML file. plots: {name of a figure: {choice: plot}}, see `figures`."""
    return Template(_asset('page.html')).substitute(
        title=html.escape(title), body=body,
        style=_asset('uplot/uPlot.min.css') + _asset('page.css'), library=_asset('uplot/uPlot.iife.min.js'),
        plots=as_script({name: choices for name, choices in plots.items() if choices}),
        script=_asset('page.save.js') + _asset('page.js'))


def as_script(value):
    """Returns JSON without the characters that could end the <script> element it stands in."""
    return functools.reduce(lambda text, pair: text.replace(*pair), ESCAPES.items(), json.dumps(value))


def _asset(name):
    return resources.files('lm.pages').joinpath(name).read_text(encoding='utf-8')


def write(path, text):
    """Writes a page to a file; raises config.Error where it cannot be written."""
    try:
        Path(path).write_text(text, encoding='utf-8', errors='replace')  # a file name may be no UTF-8
    except OSError as error:
        raise Error(f'cannot write {path}: {error.strerror}; give another --html.') from error
