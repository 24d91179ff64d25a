"""The page of a report: whole in one file, and drawn by a real browser."""
import base64
import html
import json
import re
import struct
import xml.etree.ElementTree

import pytest
import simulated
from browsers import opened
from simulated import report

from lm import cli


def test_a_page_holds_all_it_needs(swept, tmp_path):
    (swept / 'a-0' / 'sample.txt').write_text('once </script> upon')
    out = tmp_path / 'report.html'
    assert report(swept, '--html', out) == 0
    text = out.read_text()
    assert len(text) < 5e6
    assert not re.findall(r'(?:src|href)=["\'](?!data:)', text)
    assert 'url(' not in text
    for said in ('Does it help?', 'position=Alibi', 'better', '0123456789', 'lm train experiments/x.py',
                 'once &lt;/script&gt; upon', 'model.layer.attention.position'):
        assert said in text
    assert text.count('</script>') == 3


@pytest.mark.parametrize('flags', [(), ('--blink-settings=preferredColorScheme=0', '--window-size=500,900')])
def test_a_browser_draws_every_plot_and_complains_of_nothing(browser, swept, tmp_path, flags):
    out = tmp_path / 'report.html'
    assert report(swept, '--html', out) == 0
    document, console = opened(browser, out, tmp_path / 'profile', *flags)
    assert console == []
    assert document.count('<canvas') == 2
    assert 'data-drawn="2"' in document


def acted(browser, swept, tmp_path, script, *flags):
    """Returns the page of a sweep, as text, after a script was run in it."""
    out = tmp_path / 'report.html'
    assert report(swept, '--html', out) == 0
    out.write_text(out.read_text().replace('</body>', script))
    document, console = opened(browser, out, tmp_path / 'profile', *flags)
    assert console == []
    return document


ACTIONS = """<script>
const figure = document.querySelector('figure[data-plot=losses]'), seen = document.body.dataset;
const set = (name, key, value) => {
  const control = figure.querySelector(`[name=${name}]`);
  control[key] = value;
  control.dispatchEvent(new Event('input'));
};
figure.drawn.setCursor({ left: 300, top: 100 });
seen.hovered = figure.querySelector('.u-legend').innerText.replace(/\\s+/g, ' ');
set('logx', 'checked', false);
set('logy', 'checked', true);
set('axis', 'value', 'seconds');
figure.drawn.setSeries(1, { show: false });
seen.hidden = figure.drawn.series.map((series) => +series.show).join('');
seen.ended = figure.drawn.axes[0].label;
</script></body>"""


def test_the_controls_of_a_plot_work(browser, swept, tmp_path):
    document = acted(browser, swept, tmp_path, ACTIONS)
    assert re.search(r'data-hovered="tokens:? ?\S+ ?baseline:? ?[\d.]+ ?position=Alibi:? ?[\d.]+', document)
    assert 'data-hidden="1000111111"' in document
    assert 'data-ended="seconds of training"' in document


TICKED = """<script>
const crowded = [10, 1e4, 1e12, 1e22].flatMap((ratio) => [3, 6, 20].map((most) => decades(1, ratio * 1.1, most)));
document.body.dataset.counts = crowded.map((ticks) => ticks.length);
document.body.dataset.marks = [300, 100].flatMap((width) => [...marks([0.001, 0.003, 0.01], 9e-4, 0.011, width), ';']);
document.body.dataset.named = [short(1e21), short(2.5e24), short(1e20), short(0.00012), exact(0.00012345678), exact(2)];
</script></body>"""


def test_ticks_are_as_many_as_there_is_room_for(browser, swept, tmp_path):
    document = acted(browser, swept, tmp_path, TICKED)
    counts = [int(count) for count in re.search('data-counts="([^"]*)"', document)[1].split(',')]
    assert all(2 <= count <= most + 2 for count, most in zip(counts, [3, 6, 20] * 4, strict=True)), counts
    assert 'data-marks="0.001,0.003,0.01,;,0.001,0.01,;"' in document
    assert re.search('data-named="([^"]*)"', document)[1] == '1e21,2.5e24,100E,1.2e-4,0.0001235,2.0000'


SAVED = """<script>
const figure = document.querySelector('figure[data-plot=losses]'), seen = document.body.dataset;
const url = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  const reader = new FileReader();
  reader.onload = () => { seen[blob.type.slice(6, 9)] = reader.result; };
  reader.readAsDataURL(blob);
  return url(blob);
};
HTMLAnchorElement.prototype.click = function () { seen.names = (seen.names || '') + ' ' + this.download; };
figure.drawn.setSeries(7, { show: false });
for (const button of figure.querySelectorAll('button')) button.click();
</script></body>"""


@pytest.mark.parametrize('flags', [(), ('--blink-settings=preferredColorScheme=0', '--window-size=500,900',
                                        '--force-device-scale-factor=2')])
def test_plots_are_saved_as_pictures(browser, swept, tmp_path, flags):
    document = acted(browser, swept, tmp_path, SAVED, *flags)
    assert set(re.search('data-names=" ([^"]*)"', document)[1].split()) == {'losses.svg', 'losses.png'}
    files = {kind: base64.b64decode(re.search(f'data-{kind}="data:image/[^,]*;base64,([^"]*)"', document)[1])
             for kind in ('svg', 'png')}
    for kind, content in files.items():
        (tmp_path / f'losses.{kind}').write_bytes(content)
    root = xml.etree.ElementTree.fromstring(files['svg'])
    named = '{http://www.w3.org/2000/svg}'
    assert files['png'].startswith(b'\x89PNG')
    assert struct.unpack('>II', files['png'][16:24]) == tuple(2 * int(root.get(side)) for side in ('width', 'height'))
    words = [text.text for text in root.iter(f'{named}text')]
    assert {'tokens', 'valid/loss, nats per token', 'baseline', 'position=Alibi'} < {*words}
    assert 'weight_decay=0.2' not in words
    places = [[float(part) for part in re.findall(r'-?[\d.]+', path.get('d'))] for path in root.iter(f'{named}path')]
    ends = places[1][1::2]
    assert len(places) == 4 and ends == sorted(ends), 'the loss falls, so that the line goes down the picture'


def test_a_single_run_has_the_same_page(browser, tmp_path):
    run = simulated.write(tmp_path / 'run', {}, 3.0)
    out = tmp_path / 'report.html'
    assert report(run, '--html', out) == 0
    document, console = opened(browser, out, tmp_path / 'profile')
    assert console == []
    assert document.count('<canvas') == 2
    assert 'nothing can be concluded from one seed' in document


def test_a_page_without_curves_says_why(tmp_path):
    for number, peak in enumerate((0.003, 0.001)):
        simulated.write(tmp_path / f'run{number}', {'cadence.log': 1000, 'optimizer.peak': peak}, 3.0 + number)
    out = tmp_path / 'report.html'
    assert report(tmp_path, '--html', out) == 0
    text = out.read_text()
    assert ('No curve: no finished run has a validation loss at two steps, all finite; '
            'set cadence.eval to half of steps or less.') in text
    assert 'no finished run has a training loss at two steps, all finite; set cadence.log to half of steps' in text
    assert '<canvas' not in text


@pytest.mark.long
def test_a_real_run_is_reported_with_its_sample(tmp_path, capsys):
    options = ['steps=20', 'cadence.log=5', 'cadence.eval=10', 'cadence.eval_batches=1', 'cadence.save=0']
    assert cli.main(['train', 'experiments/tiny.py', f'--workdir={tmp_path / "run"}', f'--cache={tmp_path / "cache"}',
                     *options]) == 0
    assert report(tmp_path / 'run', '--html', tmp_path / 'report.html') == 0
    text = (tmp_path / 'report.html').read_text()
    assert html.escape((tmp_path / 'run' / 'sample.txt').read_text()[:200]) in text
    about = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert (about['device'], about['devices']) == ('cpu', 8)
