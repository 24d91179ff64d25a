'use strict';
const PLOTS = JSON.parse(document.getElementById('plots').textContent);
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8a6fd1', '#8c8c00'];
const DASHES = [[], [8, 4], [2, 3]];
const FEW = 30, SHARP = 2, FONT = '13px system-ui, sans-serif';

const colour = (i) => COLOURS[i % COLOURS.length];
const dashes = (i) => DASHES[Math.floor(i / COLOURS.length) % 3];
const tint = (plot, i) => colour(plot.series[i].colour ?? i);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function short(value) {
  if (value == null) return '';
  const size = Math.abs(value);
  if (size >= 1e21) return value.toExponential(2).replace(/\.?0*e\+/, 'e');
  for (const [unit, letter] of [[1e18, 'E'], [1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
    if (size >= unit) return +(value / unit).toPrecision(3) + letter;
  return size && size < 1e-3 ? value.toExponential().replace(/(\.\d\d)\d*/, '$1') : String(+value.toPrecision(3));
}

function exact(value) {
  if (value == null) return '';
  return value && Math.abs(value) < 0.01 ? value.toPrecision(4) : value.toFixed(4);
}

function even(low, high) {
  const rough = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((k) => k * unit >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function decades(low, high, most) {
  const ticks = [], span = Math.log10(high / low), every = Math.max(1, Math.ceil(span / most));
  const parts = [[1, 2, 5], [1, 3], [1]].find((parts) => parts.length * span <= most) ?? [1];
  for (let e = Math.floor(Math.log10(low) / every) * every; e <= Math.log10(high); e += every)
    for (const part of parts) {
      const tick = +(part * 10 ** e).toPrecision(12);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  return ticks.length > 1 ? ticks : even(low, high);
}

function marks(known, low, high, width) {
  const seen = known.filter((x) => x >= low && x <= high);
  const gaps = seen.slice(1).map((x, i) => (Math.log(x / seen[i]) / Math.log(high / low)) * width);
  return gaps.length && Math.min(...gaps) >= 60 ? seen : decades(low, high, width / 70);
}

function smoothed(values, share) {
  if (!share) return values;
  let total = 0, weight = 0;
  return values.map((value) => {
    if (value == null) return null;
    total = share * total + (1 - share) * value;
    weight = share * weight + 1 - share;
    return total / weight;
  });
}

function padded(low, high, log) {
  if (low == null) return [1, 10];
  if (low === high) return log ? [low / 2, high * 2] : [low - 1, high + 1];
  if (!log) return [low - 0.03 * (high - low), high + 0.03 * (high - low)];
  const margin = (high / low) ** 0.03;
  return [low / margin, high * margin];
}

function options(plot, width, state) {
  const text = css('--ink'), grid = { stroke: css('--line'), width: 1 };
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const series = [{ label: plot.xname, value: (u, v) => short(v) }], bands = [];
  plot.series.forEach((each, i) => {
    const ink = tint(plot, i), line = { label: each.name, stroke: ink, width: 2, dash: dashes(i), spanGaps: true,
      value: (u, v) => exact(v),
      ...(each.dots ? { paths: () => null, points: { show: true, size: 7, fill: ink } }
        : { points: { show: plot.x.length < FEW, size: 6 } }) };
    const edge = { class: 'edge', stroke: 'transparent', spanGaps: true, points: { show: false } };
    series.push(line, { ...edge, label: each.name + ' high' }, { ...edge, label: each.name + ' low' });
    if (each.low) bands.push({ series: [3 * i + 2, 3 * i + 3], fill: ink + (dark ? '44' : '2e') });
  });
  const axis = (name, log) => ({ label: name, stroke: text, grid, ticks: grid, filter: (u, splits) => splits,
    values: (u, splits) => splits.map(short), labelSize: 22, space: log ? 60 : 40 });
  return {
    width, height: Math.round(Math.max(260, Math.min(400, width * 0.5))), series, bands,
    scales: {
      x: { time: false, distr: state.x ? 3 : 1, range: (u, a, b) => padded(a, b, state.x) },
      y: { distr: state.y ? 3 : 1, range: (u, a, b) => padded(a, b, state.y) },
    },
    axes: [
      { ...axis(plot.xname, state.x), splits: (u, i, a, b) => (state.x ? marks(plot.x, a, b, u.width) : even(a, b)) },
      { ...axis(plot.yname), size: 56,
        splits: (u, i, a, b) => (state.y && b / a > 20 ? decades(a, b, u.height / 40) : even(a, b)) },
    ],
    hooks: {
      setSeries: [(u, i, change) => {
        if (i && i % 3 === 1 && change.show != null)
          for (const edge of [i + 1, i + 2]) u.setSeries(edge, { show: change.show });
      }],
    },
  };
}

function draw(figure) {
  const choices = PLOTS[figure.dataset.plot], place = figure.querySelector('.plot');
  const control = (name) => figure.querySelector(`[name=${name}]`);
  const plot = figure.plot = choices[control('axis') ? control('axis').value : Object.keys(choices)[0]];
  const share = control('smooth') ? +control('smooth').value : 0;
  const data = [plot.x];
  for (const each of plot.series)
    for (const part of ['mean', 'high', 'low']) data.push(smoothed(each[part] ?? each.mean, share));
  if (figure.drawn) figure.drawn.destroy();
  const state = { x: control('logx').checked, y: control('logy').checked };
  figure.drawn = new uPlot(options(plot, place.clientWidth, state), data, place);
}

const figures = [...document.querySelectorAll('figure[data-plot]')];
for (const figure of figures) {
  draw(figure);
  for (const control of figure.querySelectorAll('input, select')) control.addEventListener('input', () => draw(figure));
  for (const button of figure.querySelectorAll('button'))
    button.addEventListener('click', () => saving[button.name](figure));
}
const again = () => figures.forEach(draw);
let width = innerWidth;
addEventListener('resize', () => {
  if (innerWidth !== width) again();
  width = innerWidth;
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', again);
document.documentElement.dataset.drawn = figures.length;
