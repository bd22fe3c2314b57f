// The grid of cards: image, heatmap and verdicts, sorted and filtered.

import { contour } from './contour.js';
import { formatPadded, plural } from './dom.js';
import { find, formatNumber, make, makeBadge, oncePerFrame } from './elements.js';
import { showParts } from './grouping.js';
import { colorize, makeColorBar } from './heatmap.js';
import { compareParts } from './parts.js';
import { decodeImage, paint, readResultMap } from './picture.js';
import { colorScaleOf, isDisagreement, isScored, items, labelOf, labelParts, labelsOf, models, on,
  regionThresholdOf, selectedModels } from './state.js';
import { compareWorst, nameWarnings } from './thresholds.js';

const MAX_IMAGE_SIDE = 480;  // Pixels.
const MAX_HEATMAP_SIDE = 224;
let openItem = () => {};
let paintedThresholds = '';  // Pixel thresholds of the color bars that are shown.
export const visibleItems = [];  // In the order of their cards.

export function startGrid(enlarge) {
  openItem = enlarge;
  for (const id of ['order', 'filter']) find(id).addEventListener('change', arrange);
  on('models', () => {
    items.forEach(makeCanvases);
    const isComparison = selectedModels.length > 1;
    find('tiles').classList.toggle('comparison', isComparison);
    const option = find('filter').querySelector('[value=disagree]');
    option.hidden = option.disabled = !isComparison;
    if (!isComparison && find('filter').value === 'disagree') find('filter').value = '';
    showParts();
    arrange();
    showColorBars();
  });
  on('items', oncePerFrame(() => {
    items.forEach((item) => item.tile ?? makeTile(item));
    items.forEach(showVerdicts);
    showParts();
    arrange();
    repaint();
  }));
  on('thresholds', (isFinal) => {
    items.forEach(showVerdicts);
    showParts();
    if (isFinal) arrange();  // Cards keep their places while a threshold is being dragged.
    const pixelThresholds =
      selectedModels.map((name) => models.get(name).thresholds.pixelThreshold).join();
    if (pixelThresholds !== paintedThresholds) showColorBars();
    paintedThresholds = pixelThresholds;
    repaint();
  });
  on('overlay', repaint);
  new ResizeObserver(repaint).observe(find('tiles'));
}

function showColorBars() {
  find('color-bars').replaceChildren(...selectedModels.map((name) => {
    const title = selectedModels.length > 1 ? `${name}: pixel threshold` : undefined;
    return makeColorBar(colorScaleOf(name), formatNumber, title);
  }));
}

function makeTile(item) {
  item.views = make('span', { class: 'views' });
  item.verdicts = make('span', { class: 'verdicts' });
  item.partLine = make('span', { class: 'part', hidden: '' });
  item.button = make('button', { type: 'button' }, item.views, item.verdicts, item.partLine,
    make('bdi', { class: 'path', title: item.name }, item.name));
  item.button.addEventListener('click', () => isScored(item) && openItem(item));
  item.tile = make('li', {}, item.button);
  item.tile.item = item;
  makeCanvases(item);
  viewportObserver.observe(item.tile);
}

// One canvas per model.
function makeCanvases(item) {
  if (!item.tile) return;
  item.displayedLabels = '';
  item.canvases = selectedModels.map(() => make('canvas', { width: 0, height: 0 }));
  item.views.replaceChildren(...item.canvases);
  showVerdicts(item);
  paintTile(item);
}

function showVerdicts(item) {
  if (!item.tile) return;
  const key = labelsOf(item).join();
  if (item.displayedLabels === key) return;
  item.displayedLabels = key;
  item.tile.classList.toggle('disagree', isDisagreement(item));
  item.button.setAttribute('aria-disabled', String(!isScored(item)));
  item.verdicts.replaceChildren(...selectedModels.map((name) => makeVerdict(item, name)));
}

function makeVerdict(item, name) {
  const label = labelOf(item, name);
  const row = make('span', { class: 'verdict' });
  if (selectedModels.length > 1) row.append(make('bdi', { class: 'model' }, name));
  if (!label) row.append(make('span', { class: 'waiting' }, 'waiting'));
  else row.append(makeBadge(label));
  const result = item.results.get(name);
  if (label === 'failed') row.append(make('span', { class: 'problem' }, item.errors.get(name)));
  if (!result) return row;
  row.append(make('span', { class: 'score' }, formatPadded(result.score ?? NaN)));
  if (result.warnings.length) {
    row.append(make('span', { class: 'warnings' }, nameWarnings(result.warnings)));
  }
  return row;
}

// Only cards near the viewport are painted and hold decoded images.
const viewportObserver = new IntersectionObserver((entries) => {
  for (const { target: { item }, isIntersecting } of entries) {
    item.isNearViewport = isIntersecting;
    if (isIntersecting) paintTile(item);
    else release(item);
  }
}, { rootMargin: '400px' });

function release(item) {
  item.bitmap?.then((bitmap) => bitmap?.close());
  item.bitmap = null;
  for (const canvas of item.canvases ?? []) canvas.width = canvas.height = 0;
  for (const result of item.results.values()) {
    result.map = result.tint = result.outline = result.paintedThreshold = null;
  }
}

export function removeItem(item) {
  release(item);
  if (item.tile) viewportObserver.unobserve(item.tile);
}

async function paintTile(item) {
  if (!item.isNearViewport) return;
  item.bitmap ??= decodeImage(item.file, MAX_IMAGE_SIDE).catch(() => null);
  const decoding = item.bitmap;
  const bitmap = await decoding;
  const names = [...selectedModels];
  const results = names.map((name) => item.results.get(name));
  const maps = await Promise.all(results.map((result) =>
    result && (result.map ??= readResultMap(result, MAX_HEATMAP_SIDE))));
  if (decoding !== item.bitmap || names.some((name, i) => name !== selectedModels[i])) return;
  item.tile.classList.toggle('blank', !bitmap && !results.some(Boolean));
  names.forEach((name, i) => {
    const [result, canvas] = [results[i], item.canvases[i]];
    const [imageHeight, imageWidth] = result?.size ?? [bitmap?.height ?? 1, bitmap?.width ?? 1];
    const ratio = Math.min(window.devicePixelRatio, 2);
    const scale = ratio * canvas.clientWidth / Math.max(imageWidth, imageHeight);
    const [width, height] =
      [imageWidth, imageHeight].map((side) => Math.max(1, Math.round(side * scale)));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    if (result) updateOverlay(result, maps[i], item, name);
    paint(canvas, ratio, { bitmap, tint: result?.tint, outline: result?.outline,
      region: result && models.get(name).region });
  });
}

// `overlay` gets the colors and the outline of a map at the current thresholds.
export function updateOverlay(overlay, map, item, name) {
  const { pixelThreshold } = models.get(name).thresholds;
  // A map that was shrunk may have a lower peak than the original one.
  map.peak ??= map.values.reduce((a, b) => Math.max(a, b), -Infinity);
  const level = regionThresholdOf(item, name, map.peak);
  if (overlay.paintedThreshold === pixelThreshold && overlay.level === level) return false;
  Object.assign(overlay, { paintedThreshold: pixelThreshold, level });
  overlay.tint = colorize(map, colorScaleOf(name));
  overlay.outline = contour(map, level);
  return true;
}

const repaint = oncePerFrame(() =>
  visibleItems.filter((item) => item.isNearViewport).forEach(paintTile));

// Failed items come first, then scored ones, then those that are waiting.
const FAILED = 0, SCORED = 1, WAITING = 2;
function rank(item) {
  if (item.results.has(selectedModels[0])) return SCORED;
  return labelOf(item, selectedModels[0]) ? FAILED : WAITING;
}

function matches(item, filter) {
  if (!filter) return true;
  return filter === 'disagree' ? isDisagreement(item) : labelsOf(item).includes(filter);
}

// The cards are replaced only when their order changes, and the focused card keeps the focus.
function arrange() {
  const filter = find('filter').value;
  const next = items.filter((item) => item.tile && matches(item, filter));
  const [name] = selectedModels;
  if (find('order').value === 'worst') {
    const compare = (a, b) => (rank(a) === SCORED
      ? compareWorst(a.results.get(name), b.results.get(name), models.get(name).thresholds) : 0);
    next.sort((a, b) => rank(a) - rank(b) || compare(a, b));
  } else if (find('order').value === 'part') {
    const labels = labelParts(name);
    const withLabel = ({ part }) => ({ part, label: labels.get(part) });
    next.sort((a, b) => compareParts(withLabel(a), withLabel(b)));
  }
  if (next.length !== visibleItems.length || next.some((item, i) => item !== visibleItems[i])) {
    visibleItems.splice(0, visibleItems.length, ...next);
    const focused = document.activeElement;
    find('tiles').replaceChildren(...next.map(({ tile }) => tile));
    if (focused?.isConnected && focused.closest('#tiles')) focused.focus({ preventScroll: true });
  }
  const disagreements = selectedModels.length > 1
    ? `; the models disagree on ${plural(items.filter(isDisagreement).length, 'image')}` : '';
  find('visible-count').textContent =
    `${next.length} of ${plural(items.length, 'image')}${disagreements}.`;
}
