// Thresholds of each model: sliders with number fields, a dot plot of all scores, and label counts.

import { startCopy, thresholdCommand } from './commands.js';
import { formatInRange } from './dom.js';
import { configure, find, formatNumber, formatPercent, make, makeBadge, makeSvg, oncePerFrame }
  from './elements.js';
import { countLabels, items, models, on, selectedModels, setThresholds, THRESHOLD_KEYS, valueRange }
  from './state.js';
import { LABEL_LEGEND, labelImage } from './thresholds.js';

const SLIDER_STEPS = 1000;
const NAMES = { imageThreshold: 'Image threshold', reviewThreshold: 'Review threshold',
  pixelThreshold: 'Pixel threshold' };
const HINTS = { imageThreshold: 'Higher scores are NG.',
  reviewThreshold: 'Higher scores are review or NG.',
  pixelThreshold: 'Higher values of the anomaly map are outlined.' };
const controls = new Set();  // { element, update }

// A slider and a number field for a threshold. It is updated while it is in the document.
export function makeControl(name, key) {
  const suffix = selectedModels.length > 1 ? `, ${name}` : '';
  const slider = make('input', { type: 'range', min: 0, max: SLIDER_STEPS, 'data-key': key,
    'aria-label': `${NAMES[key]}${suffix}` });
  const field = make('input', { type: 'number', step: 'any', 'data-key': key,
    'aria-label': `${NAMES[key]}, as a number${suffix}` });
  const element = make('div', { class: 'control', title: HINTS[key] },
    make('span', { 'aria-hidden': 'true' }, NAMES[key]), slider, field);
  const update = () => {
    const [low, high] = valueRange(name, key);
    const value = models.get(name).thresholds[key];
    if (document.activeElement !== slider || !slider.isDragged) {
      slider.value = Math.round(SLIDER_STEPS * (value - low) / (high - low));
    }
    slider.setAttribute('aria-valuetext', formatNumber(value));
    field.value = Number.isFinite(value) ? Number(value.toPrecision(6)) : '';
  };
  const readSlider = (isFinal) => {
    const [low, high] = valueRange(name, key);
    slider.isDragged = !isFinal;
    const value = Number((low + slider.value / SLIDER_STEPS * (high - low)).toPrecision(6));
    setThresholds(name, { [key]: value }, isFinal);
  };
  slider.addEventListener('input', () => readSlider(false));
  slider.addEventListener('change', () => readSlider(true));
  field.addEventListener('change', () => {
    setThresholds(name, Number.isNaN(field.valueAsNumber) ? {} : { [key]: field.valueAsNumber });
  });
  controls.add({ element, update });
  update();
  return element;
}

function updateControls() {
  for (const control of controls) {
    if (control.element.isConnected) control.update();
    else controls.delete(control);
  }
}

function makePanel(name) {
  const isComparison = selectedModels.length > 1;
  const chart = make('div', { class: 'strip' });
  const labelCounts = make('p', { class: 'label-counts', 'data-model': name });
  const reset = make('button', { type: 'button' }, 'Reset to calibrated');
  reset.addEventListener('click', () => setThresholds(name, models.get(name).calibrated));
  const command = make('pre', { tabindex: 0, 'aria-label': 'Command for the model' });
  const copy = make('button', { type: 'button' }, 'Copy');
  startCopy(copy, command);
  const commandBox = make('div', { class: 'threshold-command', hidden: '' },
    make('p', { class: 'hint' }, 'This command writes these thresholds into the model. Restart the '
      + 'service to use them.'), command, copy);
  const title = make('h2', {}, 'Thresholds');
  if (isComparison) title.append(' of ', make('bdi', {}, name));
  const element = make('section', { class: 'card panel',
    'aria-label': isComparison ? `Thresholds of ${name}` : 'Thresholds' },
    title, make('div', { class: 'columns' },
      make('div', {}, labelCounts, chart, make('p', { class: 'hint' }, LABEL_LEGEND)),
      make('div', { class: 'controls' },
        ...THRESHOLD_KEYS.map((key) => makeControl(name, key)), reset, commandBox)));
  let dots = [];
  let lines = {};
  let zone;
  let x = () => 0;
  let drawnState = '';

  // Draws the dot plot. Dots that would overlap are stacked.
  function draw() {
    const width = chart.clientWidth;
    if (!width) return;
    const results = items.map((item) => item.results.get(name))
      .filter((result) => Number.isFinite(result?.score));
    const scores = results.map(({ score }) => score);
    const [low, high] = valueRange(name, 'imageThreshold');
    const state = [width, low, high, scores].join();
    if (state === drawnState) return;
    drawnState = state;
    x = (v) => 8 + (width - 16) * Math.min(1, Math.max(0, (v - low) / (high - low)));
    const dotSize = 8;
    const stacks = new Map();
    for (const result of results) {
      const key = Math.round(x(result.score) / dotSize);
      stacks.set(key, [...stacks.get(key) ?? [], result]);
    }
    const maxCount = Math.max(1, ...[...stacks.values()].map((stack) => stack.length));
    const [plotHeight, step] = [78, Math.min(dotSize, 62 / maxCount)];
    const height = plotHeight + 58;
    const svg = makeSvg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
      'aria-label':
        `${scores.length} scores, ${formatNumber(low)} to ${formatNumber(high)}` });
    zone = makeSvg('rect', { class: 'zone', y: 36, height: plotHeight });
    const base = plotHeight + 36;
    svg.append(zone, makeSvg('line', { x1: 0, x2: width, y1: base, y2: base, class: 'axis' }));
    dots = [...stacks].flatMap(([key, stack]) => stack.map((result, i) => {
      const dot = makeSvg('circle', { cx: key * dotSize, cy: base - 5 - i * step, r: 3.6 });
      svg.append(dot);
      return { dot, result };
    }));
    lines = Object.fromEntries(['reviewThreshold', 'imageThreshold'].map((key) => {
      const isReview = key === 'reviewThreshold';
      return [key, {
        // Below both texts, so that no line crosses the other one's text.
        line: makeSvg('line', { class: `threshold${isReview ? ' review-threshold' : ''}`,
          y1: 36, y2: base }),
        text: makeSvg('text', { y: isReview ? 30 : 12, class: 'threshold-text' }),
      }];
    }));
    const marks = Object.values(lines);
    svg.append(...marks.map(({ line }) => line), ...marks.map(({ text }) => text));
    const [y, range] = [base + 15, high - low];
    svg.append(makeSvg('text', { x: 0, y, class: 'tick' }, formatInRange(low, range)),
      makeSvg('text', { x: width, y, class: 'tick end' }, formatInRange(high, range)));
    chart.replaceChildren(svg);
  }

  function update() {
    draw();
    if (!drawnState) return;
    const { directory, thresholds, calibrated } = models.get(name);
    command.textContent = thresholdCommand(directory, calibrated, thresholds);
    commandBox.hidden = !command.textContent;
    reset.disabled = THRESHOLD_KEYS.every((key) => thresholds[key] === calibrated[key]);
    const width = chart.clientWidth;
    for (const [key, { line, text }] of Object.entries(lines)) {
      const lineX = x(thresholds[key]);
      configure(line, { x1: lineX, x2: lineX });
      text.textContent = `${NAMES[key].toLowerCase()} ${formatNumber(thresholds[key])}`;
      const half = 4.1 * text.textContent.length;
      // Each text stands beside its own line, on the side away from the other line.
      const textX = lineX + (key === 'imageThreshold' ? half + 3 : -half - 3);
      configure(text, { x: Math.min(width - half, Math.max(half, textX)) });
    }
    const [from, to] = [x(thresholds.reviewThreshold), x(thresholds.imageThreshold)];
    configure(zone, { x: from, width: Math.max(0, to - from) });
    for (const { dot, result } of dots) dot.setAttribute('class', labelImage(result, thresholds));
    const counts = countLabels(name);
    const labels = ['OK', 'review', 'NG', ...(counts.failed ? ['failed'] : [])];
    const total = labels.reduce((sum, label) => sum + counts[label], 0);
    labelCounts.replaceChildren(...labels.map((label) => make('span', { class: 'count' },
      makeBadge(label), make('strong', {}, counts[label]),
      make('span', {}, formatPercent(total ? counts[label] / total : null)))));
  }
  new ResizeObserver(update).observe(chart);
  return { element, update };
}

let panels = [];
const updatePanels = oncePerFrame(() => panels.forEach((panel) => panel.update()));

export function startPanels() {
  on('models', () => {
    panels = selectedModels.map(makePanel);
    find('panels').replaceChildren(...panels.map(({ element }) => element));
    updatePanels();
  });
  on('thresholds', () => {
    updateControls();
    updatePanels();
  });
  on('items', () => {
    find('panels').hidden = !items.length;
    updateControls();
    updatePanels();
  });
  find('panels').hidden = true;
}
