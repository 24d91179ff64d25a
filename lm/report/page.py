"""A study as one self-contained HTML file."""
import html

from lm.config import files
from lm.pages import document, figures, tags
from lm.report import comparisons, costs, parallel_coordinates, plots, provenance, show, variants

CLASSES = {comparisons.BETTER: 'better', comparisons.WORSE: 'worse'}
LACKING = (('losses', 'a validation loss', 'cadence.eval'), ('training', 'a training loss', 'cadence.log'))
KINDS = tuple((lambda text: CLASSES.get(text, 'same')) if name == 'verdict' else '' for name in show.HEAD)


def render(study):
    """Returns the page of a Study as the text of one HTML file."""
    flops = study.table.flops or costs.per_token(study.variants[0].finished)
    drawn = {'losses': plots.losses(study, study.metric), 'training': plots.losses(study, 'loss')}
    rates = plots.sensitivity(study)
    drawn |= {'rates': {'rate': rates}} if rates else {}
    body = '\n'.join([_opening(study), _verdicts(study), _plots(drawn, study), _sources(study),
                      parallel_coordinates.section(study), _settings(study), provenance.section(study, flops),
                      _samples(study), _left_out(study)])
    return document.render(study.question or 'Report', body, drawn)


def _opening(study):
    trials = [trial for variant in study.variants for trial in variant.trials]
    return (f'<h1>{html.escape(study.question or "What these runs show")}</h1>\n'
            + tags.paragraph(f'Variants: {len(study.variants)}. Runs: {len(trials)}, left out: {len(study.left_out)}. '
                             f'Metric: {show.measured(study.metric)}; lower is better.'))


def _verdicts(study):
    if len(study.variants) == 1:
        tokens = study.families['tokens']
        seeds, loss = show.losses(tokens.scores[study.variants[0].name])
        text = f'A single variant, with nothing to compare it with. {study.metric}: {loss}, {seeds} seed(s).'
        return tags.section('Result', tags.paragraph(text, ''), tags.paragraph(tokens.why))
    return '\n'.join(tags.section(f'At equal {show.UNITS[axis]}', _family(study, family))
                     for axis, family in study.families.items())


def _family(study, family):
    if not show.judged(family):
        return tags.paragraph(family.why[:1].upper() + family.why[1:] + '.')
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in show.notes(family) + show.footnotes(study, family))
    return tags.paragraph(show.heading(study, family)) + _table(family) + f'<ul class="soft">{notes}</ul>'


def _table(family):
    return tags.table(show.HEAD, show.verdict_rows(family), KINDS)


def _plots(drawn, study):
    hidden = len(study.variants) - plots.SHOWN
    few = f' Of {len(study.variants)} variants, the baseline and the {plots.SHOWN - 1} best.' if hidden > 0 else ''
    text = {'losses': ('Held-out loss',
                       'Lines are means over seeds at the best rate of each variant; bands span all seeds.'),
            'training': ('Training loss', 'Smoothing averages over steps; bands span all seeds.'),
            'rates': ('Sensitivity to the learning rate', 'Bands are one standard deviation over seeds to each side.')}
    sections = {name: figures.figure(name, figures.by_axis(choices), text[name][1] + few, smoothing=name == 'training')
                for name, choices in drawn.items() if choices}
    sections |= {name: tags.paragraph(f'No curve: no finished run has {what} at two steps, all finite; '
                                      f'set {key} to half of steps or less.')
                 for name, what, key in LACKING if not drawn[name]}
    return '\n'.join(tags.section(text[name][0], sections[name]) for name in text if name in sections)


def _sources(study):
    family_size = f'p is adjusted over the comparisons of all {len(study.sources)} sources.'
    return '\n'.join(tags.section(f'Held-out loss of {source}', _table(family), tags.paragraph(family_size))
                     for source, family in study.sources.items())


def _settings(study):
    base, *others = study.variants
    rows = [('' if i else other.name, key, before, after) for other in others
            for i, (key, (before, after)) in enumerate(sorted(variants.changed(base.settings, other.settings).items()))]
    settings = tags.table(('setting', 'value'), sorted(base.settings.items()), ('any', 'any'))
    every = (f'<details><summary>All settings of {html.escape(base.name if others else "this run")}</summary>{settings}'
             '</details>')
    changes = tags.table(('variant', 'setting', 'baseline value', 'its value'), rows, ('any',) * 4) if rows else ''
    return tags.section('Settings', changes, every)


def _samples(study):
    texts = [(variant.name, _sample(trial)) for variant in plots.shown(study) for trial in variant.finished[:1]]
    return tags.section('Samples', *(f'<p>{html.escape(name)}</p><pre>{html.escape(text)}</pre>'
                                     for name, text in texts if text))


def _sample(trial):
    """Returns the beginning of a trial's sample, '' without one."""
    try:
        return files.content(trial.directory / 'sample.txt').decode(errors='replace')[:2000]
    except OSError:
        return ''


def _left_out(study):
    return tags.section('Left out', tags.table(('run', 'why'), study.left_out, ('', 'any'))) if study.left_out else ''
