"""Pages: the text of numbers, times and tables, and that nothing inside a page can end its scripts."""
import math

import numpy as np
import pytest

from lm import config
from lm.pages import document, figures, tags, text


@pytest.mark.parametrize('value, short', [
    (0, '0'), (0.00123456, '0.00123'), (999.4, '999'), (999.6, '1k'), (52_310.4, '52.3k'), (999_900, '1M'),
    (1.234e9, '1.23B'), (-2500, '-2.5k'), (1e18, '1E'), (1e21, '1e+21')])
def test_numbers_have_three_digits_and_a_unit(value, short):
    assert text.short(value) == short


def test_times_are_hours_minutes_and_seconds():
    assert [text.clock(seconds) for seconds in (0, 59.9, 3661, 400_000)] == [
        '0:00:00', '0:00:59', '1:01:01', '111:06:40']


def test_columns_are_aligned_and_whole():
    assert text.columns(('name', 'n'), [('a' * 9, '1'), ('b', '')]) == 'name       n\naaaaaaaaa  1\nb'
    assert text.columns(('', ''), [('a', '1')]) == 'a  1'


def test_plots_have_six_digits_and_null_for_what_is_not_finite():
    assert figures.rounded(np.array([1 / 3, math.nan, math.inf, 2.0])) == [0.333333, None, None, 2.0]


def test_a_page_escapes_what_could_end_its_elements():
    assert '<' not in document.as_script({'name': '</script>'})
    cell = tags.table(('head',), [('model.norm=<b>',)])
    assert '<td>model.norm=<wbr>&lt;b&gt;</td>' in cell
    page = document.render('<title>', '', {'empty': {}, 'drawn': {'x': {'name': '</script>'}}})
    assert '<title>&lt;title&gt;</title>' in page and page.count('</script>') == 3 and '"empty"' not in page


def test_a_figure_offers_what_it_is_asked_for():
    plain = figures.figure('a', {'tokens': 'against tokens'}, 'A caption.')
    assert 'name="axis"' not in plain and 'name="smooth"' not in plain and 'name="logy">' in plain
    rich = figures.figure('a', {'x': 'against x', 'y': 'against y'}, '', log_y=True, smoothing=True)
    assert rich.count('<option') == 2 and 'name="smooth"' in rich and 'name="logy" checked>' in rich


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    document.write(tmp_path / 'page.html', 'ü')
    assert (tmp_path / 'page.html').read_text(encoding='utf-8') == 'ü'
    with pytest.raises(config.Error, match='cannot write .*: Is a directory; give another --html'):
        document.write(tmp_path, '')
