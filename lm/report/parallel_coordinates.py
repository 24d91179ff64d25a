"""Parallel coordinates plot: each trial is a line through the settings that vary, ending at its loss."""
import html

import numpy as np

from lm.pages import tags

WIDTH, HEIGHT, TOP, SIDE = 900, 300, 34, 70
AXES = 8  # settings shown at most, those with the fewest values first
LINES = 300


def section(study):
    """Returns the section with the plot, '' for fewer than two settings that vary or four finished trials."""
    value = study.values()
    finished = [trial for variant in study.variants for trial in variant.finished if np.isfinite(value(trial))]
    trials = finished[:LINES]
    keys = _varying(trials)
    if len(trials) < 4 or len(keys) < 2:
        return ''
    columns = [(key.rpartition('.')[2], [trial.settings.get(key, '(absent)') for trial in trials]) for key in keys]
    columns.append((study.metric, [value(trial) for trial in trials]))
    lines = _lines(columns, [trial.name for trial in trials])
    caption = 'Each line is a run, from its settings to its loss; the bluer, the lower. Hover a line for its name.'
    if len(finished) > LINES:
        caption += f' Of {len(finished)} runs, {LINES}: those of the best variants.'
    return tags.section('Settings against loss', f'<figure><div class="wide">{lines}</div>'
                        f'<figcaption>{caption}</figcaption></figure>')


def _varying(trials):
    """Returns the keys of the settings that vary; of a component that varies in type only the type."""
    values = {}
    for trial in trials:
        for key, value in trial.settings.items():
            values.setdefault(key, set()).add(str(value))
    varying = [key for key, distinct in values.items() if len(distinct) > 1]
    outermost = [key for key in varying if not any(key.startswith(f'{other}.') for other in varying)]
    return sorted(outermost, key=lambda key: len(values[key]))[:AXES]


def _heights(values):
    """Returns (height of each value on its axis [n], 0 at the bottom to 1; {label: height})."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        names = sorted(set(map(str, values)))
        places = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return [places[str(value)] for value in values], places
    x = np.array(values, float)
    x = np.log(x) if x.min() > 0 and x.max() / x.min() > 8 else x
    heights = (x - x.min()) / (np.ptp(x) or 1)
    distinct = sorted(set(values)) if len(set(values)) <= 8 else [min(values), max(values)]
    return heights.tolist(), {f'{value:.4g}': heights[values.index(value)] for value in distinct}


def _lines(columns, names):
    step = (WIDTH - 2 * SIDE) / (len(columns) - 1)
    placed = [_heights(values) for _, values in columns]

    def down(height):
        return TOP + (1 - height) * (HEIGHT - TOP - 16)
    drawn = []
    for i, name in enumerate(names):
        points = ' '.join(f'{SIDE + k * step:.0f},{down(heights[i]):.1f}' for k, (heights, _) in enumerate(placed))
        hue = f'hsl({205 - 180 * placed[-1][0][i]:.0f} 70% 50%)'
        drawn.append(f'<polyline points="{points}" stroke="{hue}"><title>{html.escape(name)}: '
                     f'{columns[-1][1][i]:.4f}</title></polyline>')
    for k, ((name, _), (_, places)) in enumerate(zip(columns, placed, strict=True)):
        x = SIDE + k * step
        drawn.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP}" y2="{HEIGHT - 16}"/>'
                     f'<text x="{x:.0f}" y="16" text-anchor="middle" font-weight="600">{html.escape(name)}</text>')
        drawn += [f'<text x="{x + 5:.0f}" y="{down(place) + 4:.1f}">{html.escape(label)}</text>'
                  for label, place in places.items()]
    return f'<svg class="parallel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
