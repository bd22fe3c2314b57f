// Thresholds of the models: sliders with numbers, all scores in a strip, and what becomes of them.

import { badge, decimals, draw, fill, find, make, number, soon } from './dom.js';
import { chosen, counts, items, models, move, on, span, verdict } from './state.js';

const STEPS = 1000;  // Of a slider.
const NAMES = { image: 'NG above', review: 'Review above', pixel: 'Pixels marked above' };
const followers = new Set();  // { element, place }

// A slider and a number for a threshold; it follows as long as it is in the page.
export function control(name, key) {
  const whose = chosen.length > 1 ? `, ${name}` : '';
  const range = make('input', { type: 'range', min: 0, max: STEPS, 'data-key': key,
    'aria-label': `${NAMES[key]}${whose}` });
  const exact = make('input', { type: 'number', step: 'any', 'data-key': key,
    'aria-label': `${NAMES[key]}, as a number${whose}` });
  const element = make('div', { class: 'control' },
    make('span', { 'aria-hidden': 'true' }, NAMES[key]), range, exact);
  const place = () => {
    const [low, high] = span(name, key);
    const value = models.get(name).limits[key];
    if (document.activeElement !== range || !range.dragged) {
      range.value = Math.round(STEPS * (value - low) / (high - low));
    }
    range.setAttribute('aria-valuetext', number(value));
    exact.value = Number.isFinite(value) ? Number(value.toPrecision(6)) : '';
  };
  const to = (settled) => {
    const [low, high] = span(name, key);
    range.dragged = !settled;
    move(name, { [key]: Number((low + range.value / STEPS * (high - low)).toPrecision(6)) },
      settled);
  };
  range.addEventListener('input', () => to(false));
  range.addEventListener('change', () => to(true));
  exact.addEventListener('change', () => {
    move(name, Number.isNaN(exact.valueAsNumber) ? {} : { [key]: exact.valueAsNumber });
  });
  followers.add({ element, place });
  place();
  return element;
}

function follow() {
  for (const one of followers) {
    if (one.element.isConnected) one.place();
    else followers.delete(one);
  }
}

function panel(name) {
  const several = chosen.length > 1;
  const chart = make('div', { class: 'strip' });
  const tally = make('p', { class: 'tally', 'data-model': name });
  const reset = make('button', { type: 'button' }, 'As calibrated');
  reset.addEventListener('click', () => move(name, models.get(name).calibrated));
  const title = make('h2', {}, 'Thresholds');
  if (several) title.append(' of ', make('bdi', {}, name));
  const element = make('section', { class: 'card panel',
    'aria-label': several ? `Thresholds of ${name}` : 'Thresholds' },
    title, make('div', { class: 'split' },
      make('div', {}, chart, tally),
      make('div', { class: 'controls' },
        ...['image', 'review', 'pixel'].map((key) => control(name, key)), reset)));
  let dots = [];
  let lines = {};
  let x = () => 0;
  let drawn = '';

  // Dots that would cover each other stand upon each other.
  function lay() {
    const width = chart.clientWidth;
    if (!width) return;
    const scores = items.map((item) => item.results.get(name)?.score).filter(Number.isFinite);
    const [low, high] = span(name, 'image');
    const same = [width, low, high, scores].join();
    if (same === drawn) return;
    drawn = same;
    x = (v) => 8 + (width - 16) * Math.min(1, Math.max(0, (v - low) / (high - low)));
    const size = 8;
    const piles = Map.groupBy?.(scores, (score) => Math.round(x(score) / size))
      ?? scores.reduce((all, score) => {
        const key = Math.round(x(score) / size);
        return all.set(key, [...all.get(key) ?? [], score]);
      }, new Map());
    const most = Math.max(1, ...[...piles.values()].map((pile) => pile.length));
    const [tall, step] = [78, Math.min(size, 62 / most)];
    const full = tall + 58;
    const svg = draw('svg', { width, height: full, viewBox: `0 0 ${width} ${full}`,
      role: 'img', 'aria-label': `${scores.length} scores, ${number(low)} to ${number(high)}` });
    const zone = draw('rect', { class: 'zone', y: 36, height: tall });
    const base = tall + 36;
    svg.append(zone, draw('line', { x1: 0, x2: width, y1: base, y2: base, class: 'axis' }));
    dots = [...piles].flatMap(([key, pile]) => pile.map((score, i) => {
      const dot = draw('circle', { cx: key * size, cy: base - 5 - i * step, r: 3.6 });
      svg.append(dot);
      return { dot, score };
    }));
    lines = Object.fromEntries(['review', 'image'].map((key) => [key, {
      line: draw('line', { class: `limit ${key}`, y1: key === 'image' ? 16 : 34, y2: base }),
      text: draw('text', { y: key === 'image' ? 12 : 30, class: 'end-text' }),
    }]));
    const marks = Object.values(lines);
    svg.append(...marks.map(({ line }) => line), ...marks.map(({ text }) => text));
    lines.zone = zone;
    const unit = high - low;
    svg.append(draw('text', { x: 0, y: base + 15, class: 'tick' }, decimals(low, unit)),
      draw('text', { x: width, y: base + 15, class: 'tick end' }, decimals(high, unit)));
    chart.replaceChildren(svg);
  }

  function place() {
    lay();
    if (!drawn) return;
    const { limits, calibrated } = models.get(name);
    reset.disabled = Object.keys(limits).every((key) => limits[key] === calibrated[key]);
    const wide = chart.clientWidth;
    for (const [key, told] of [['review', 'review above'], ['image', 'NG above']]) {
      const { line, text } = lines[key];
      const at = x(limits[key]);
      fill(line, { x1: at, x2: at });
      text.textContent = `${told} ${number(limits[key])}`;
      const half = 4.1 * text.textContent.length;
      // Beside its own line, away from the other one.
      const beside = at + (key === 'image' ? half + 3 : -half - 3);
      fill(text, { x: Math.min(wide - half, Math.max(half, beside)) });
    }
    fill(lines.zone, { x: x(limits.review),
      width: Math.max(0, x(limits.image) - x(limits.review)) });
    for (const { dot, score } of dots) dot.setAttribute('class', verdict(score, limits));
    const found = counts(name);
    const kinds = ['OK', 'review', 'NG', ...(found.failed ? ['failed'] : [])];
    tally.replaceChildren(...kinds.map((label) =>
      make('span', { class: 'count' }, badge(label), make('strong', {}, found[label]))));
  }
  new ResizeObserver(place).observe(chart);
  return { element, place };
}

let panels = [];
const place = soon(() => panels.forEach((one) => one.place()));

export function startPanels() {
  on('models', () => {
    panels = chosen.map(panel);
    find('panels').replaceChildren(...panels.map(({ element }) => element));
    place();
  });
  on('limits', () => {
    follow();
    place();
  });
  on('items', () => {
    find('panels').hidden = !items.length;
    follow();
    place();
  });
  find('panels').hidden = true;
}
