'use strict';
const entity = { '<': '&lt;', '>': '&gt;', '&': '&amp;', '"': '&quot;' };
const escaped = (text) => String(text).replace(/[<>&"]/g, (letter) => entity[letter]);

function tag(name, attributes, inside = '') {
  const pairs = Object.entries(attributes).map(([key, value]) => ` ${key}="${escaped(value)}"`).join('');
  return `<${name}${pairs}>${inside}</${name}>`;
}

const round = (value) => +value.toFixed(2);

function known(u, values) {
  return values.flatMap((v, i) => (v == null || u.data[0][i] == null ? []
    : [[round(u.valToPos(u.data[0][i], 'x')), round(u.valToPos(v, 'y'))]]));
}

const path = (places) => (places.length ? 'M' + places.map((place) => place.join(' ')).join('L') : '');

function inks(figure) {
  const u = figure.drawn, drawn = [];
  figure.plot.series.forEach((each, i) => {
    if (!u.series[3 * i + 1].show) return;
    const [mean, high, low] = [1, 2, 3].map((k) => known(u, u.data[3 * i + k])), ink = tint(figure.plot, i);
    if (each.low) drawn.push(tag('path', { d: path([...high, ...low.reverse()]), fill: ink, 'fill-opacity': 0.2 }));
    if (!each.dots)
      drawn.push(tag('path', { d: path(mean), fill: 'none', stroke: ink, 'stroke-width': 2,
        'stroke-dasharray': dashes(i).join(' ') || 'none' }));
    if (each.dots || figure.plot.x.length < FEW)
      drawn.push(...mean.map(([x, y]) => tag('circle', { cx: x, cy: y, r: 3, fill: ink })));
  });
  return drawn.join('');
}

function lines(figure, width, height) {
  const u = figure.drawn, line = { stroke: css('--line') }, drawn = [];
  for (const [name, axis] of [['x', u.axes[0]], ['y', u.axes[1]]]) {
    const { min, max } = u.scales[name];
    for (const tick of axis.splits(u, 0, min, max)) {
      const at = round(u.valToPos(tick, name)), across = name === 'x';
      drawn.push(tag('line', across ? { x1: at, x2: at, y1: 0, y2: height, ...line }
        : { x1: 0, x2: width, y1: at, y2: at, ...line }));
      drawn.push(tag('text', across ? { x: at, y: height + 18, 'text-anchor': 'middle' }
        : { x: -8, y: at + 4, 'text-anchor': 'end' }, escaped(short(tick))));
    }
    const turned = { transform: `translate(-46 ${height / 2}) rotate(-90)`, 'text-anchor': 'middle' };
    const flat = { x: width / 2, y: height + 40, 'text-anchor': 'middle' };
    drawn.push(tag('text', name === 'x' ? flat : turned, escaped(axis.label)));
  }
  return drawn.join('');
}

function legend(figure, width, top) {
  const pen = document.createElement('canvas').getContext('2d'), drawn = [];
  pen.font = FONT;
  let left = 0, y = top;
  figure.plot.series.forEach((each, i) => {
    if (!figure.drawn.series[3 * i + 1].show) return;
    const room = pen.measureText(each.name).width + 34;
    if (left && left + room > width) [left, y] = [0, y + 18];
    const fill = tint(figure.plot, i);
    drawn.push(each.dots ? tag('circle', { cx: left + 5, cy: y - 4, r: 3, fill })
      : tag('rect', { x: left, y: y - 9, width: 10, height: 10, fill }));
    drawn.push(tag('text', { x: left + 15, y }, escaped(each.name)));
    left += room;
  });
  return { drawn: drawn.join(''), bottom: y };
}

function picture(figure) {
  const u = figure.drawn, box = u.bbox, ratio = u.ctx.canvas.width / u.width;
  const [left, top, width, height] = [box.left, box.top, box.width, box.height].map((size) => size / ratio);
  const names = legend(figure, width, height + 66), whole = Math.ceil(top + names.bottom + 14);
  const inside = lines(figure, width, height) + tag('svg', { width, height }, inks(figure)) + names.drawn;
  return tag('svg', { xmlns: 'http://www.w3.org/2000/svg', width: u.width, height: whole,
    viewBox: `0 0 ${u.width} ${whole}`, style: `font: ${FONT}`, fill: css('--ink') },
  tag('rect', { width: u.width, height: whole, fill: css('--card') })
    + tag('g', { transform: `translate(${left} ${top})` }, inside));
}

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const saving = {
  svg: (figure) => download(new Blob([picture(figure)], { type: 'image/svg+xml' }), figure.dataset.plot + '.svg'),
  png: async (figure) => {
    const image = new Image(), canvas = document.createElement('canvas');
    image.src = 'data:image/svg+xml,' + encodeURIComponent(picture(figure));
    await image.decode();
    [canvas.width, canvas.height] = [image.width * SHARP, image.height * SHARP];
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(blob, figure.dataset.plot + '.png'), 'image/png');
  },
};
