// One image enlarged: anomaly maps, regions, and the map value under the cursor.

import { formatPadded } from './dom.js';
import { configure, find, formatNumber, make, makeBadge } from './elements.js';
import { updateOverlay, visibleItems } from './grid.js';
import { makeControl } from './panel.js';
import { decodeImage, findRegions, paint, readResultMap } from './picture.js';
import { openDrawing } from './region.js';
import { emit, isScored, labelOf, models, on, overlay, regionThresholdOf, selectedModels }
  from './state.js';

const MAX_IMAGE_SIDE = 1600;  // Pixels.
const MAX_HEATMAP_SIDE = 1024;  // Anomaly maps are smoother than images.
const MAX_REGIONS = 12;
const dialog = find('zoom');
let item = null;
let views = [];
let bitmap = null;

// A canvas with verdict, pixel threshold and regions below it, for one model.
function makeView(name) {
  const canvas = make('canvas', { role: 'img', 'aria-label': `Heatmap of ${name}` });
  const holder = make('div', { class: 'holder' }, canvas);
  const verdict = make('span', { class: 'verdict' });
  const warnings = make('p', { class: 'warnings' });
  const list = make('ol', { class: 'regions' });
  const details = make('details', {}, make('summary', {}, 'Regions'), list);
  const element = make('figure', {}, holder,
    make('figcaption', {}, verdict, makeControl(name, 'pixelThreshold'), details, warnings));
  const view = { name, canvas, holder, verdict, warnings, details, list, element };
  canvas.addEventListener('pointermove', (event) => showPixel(event, canvas));
  canvas.addEventListener('pointerleave', showHint);
  return view;
}

function showHint() {
  find('cursor').textContent = 'Point at a pixel to read its anomaly map value. The arrow keys '
    + 'show the previous or next image.';
}

function showPixel(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const [shareX, shareY] =
    [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  if ([shareX, shareY].some((share) => share < 0 || share >= 1)) return;
  const readings = views.filter(({ map }) => map).map(({ name, map, result }) => {
    const [x, y] = [Math.floor(shareX * result.size[1]), Math.floor(shareY * result.size[0])];
    const [u, v] = [Math.floor(shareX * map.width), Math.floor(shareY * map.height)];
    const value = map.values[v * map.width + u];
    const side = value > models.get(name).thresholds.pixelThreshold ? 'above' : 'below';
    const prefix = views.length > 1 ? `${name} ` : '';
    return { position: `x ${x}, y ${y}: `,
      text: `${prefix}${formatNumber(value)}, ${side} the pixel threshold` };
  });
  const [first] = readings;
  if (!first) return;
  find('cursor').textContent = first.position + readings.map(({ text }) => text).join('; ');
}

export async function enlarge(newItem) {
  item = newItem;
  if (!dialog.open) {
    find('zoom-tools').prepend(find('tools'));  // The overlay settings move into the dialog.
    views = selectedModels.map(makeView);
    find('views').replaceChildren(...views.map(({ element }) => element));
    find('views').classList.toggle('comparison', views.length > 1);
    for (const { holder } of views) resizeObserver.observe(holder);
    dialog.showModal();
  }
  showHint();
  updateHead();
  const currentViews = views;
  const [newBitmap, ...maps] = await Promise.all([
    decodeImage(newItem.file, MAX_IMAGE_SIDE).catch(() => null),
    ...views.map(({ name }) => newItem.results.get(name))
      .map((result) => result && readResultMap(result, MAX_HEATMAP_SIDE)),
  ]);
  if (item !== newItem || currentViews !== views || !dialog.open) {
    newBitmap?.close();
    return;
  }
  bitmap?.close();
  bitmap = newBitmap;
  views.forEach((view, i) => {
    [view.map, view.result] = [maps[i] || null, newItem.results.get(view.name)];
    view.tint = view.outline = view.paintedThreshold = null;
  });
  if (!bitmap) find('cursor').textContent = 'This browser cannot show images of that format.';
  update();
}

function updateHead() {
  find('zoom-name').textContent = item.name;
  const scored = visibleItems.filter(isScored);
  const [{ size: [height, width] }] = item.results.values();
  find('zoom-info').textContent =
    `${scored.indexOf(item) + 1} of ${scored.length}, ${width} × ${height}`;
  for (const { name, verdict, warnings } of views) {
    const result = item.results.get(name);
    verdict.replaceChildren(
      ...(selectedModels.length > 1 ? [make('bdi', { class: 'model' }, name)] : []),
      makeBadge(labelOf(item, name) || 'waiting'),
      result ? `score ${formatNumber(result.score ?? NaN, 6)}` : item.errors.get(name) ?? '',
      make('span', {}, labelOf(item, name) === 'review'
        ? `look at x ${result.at[0]}, y ${result.at[1]}` : ''));
    const messages = (result?.warnings ?? []).map(({ message }) => message);
    warnings.textContent = messages.join(' ');
    warnings.hidden = !messages.length;
  }
}

// Recomputes colors, outlines and regions at the current thresholds. At the calibrated thresholds
// the exact regions of the service are shown.
function update() {
  if (!dialog.open) return;
  updateHead();
  for (const view of views) {
    const { name, map, result } = view;
    view.details.hidden = !result;
    if (map && updateOverlay(view, map, item, name)) {
      const isExact = regionThresholdOf(item, name, result.peak)
        === (result.regionsPixelThreshold ?? Infinity);
      view.regions = isExact ? result.regions : findRegions(map, view.level, result.size);
      listRegions(view);
    }
  }
  paintViews();
}

function listRegions({ details, list, regions, result }) {
  const more = regions.length > MAX_REGIONS ? `, showing the ${MAX_REGIONS} highest peaks` : '';
  details.firstChild.textContent =
    regions.length === 1 ? '1 region' : `${regions.length} regions${more}`;
  const [height, width] = result.size;
  list.replaceChildren(...regions.slice(0, MAX_REGIONS).map(({ peak, at, area }) => make('li', {},
    `peak ${formatNumber(peak)} at x ${at[0]}, y ${at[1]}; ${area} of ${height * width} pixels`)));
}

function paintViews() {
  for (const { name, canvas, holder, tint, outline, result, regions } of views) {
    const [imageHeight, imageWidth] = result?.size ?? [bitmap?.height ?? 1, bitmap?.width ?? 1];
    const ratio = window.devicePixelRatio;
    const scale = Math.min(holder.clientWidth / imageWidth, holder.clientHeight / imageHeight);
    if (!(scale > 0)) continue;
    const [width, height] = [imageWidth * scale, imageHeight * scale];
    configure(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    const boxes = find('boxes').checked && result ? regions.slice(0, MAX_REGIONS) : [];
    paint(canvas, ratio, { bitmap, tint, outline: result && outline,
      region: result && models.get(name).region,
      boxes: boxes.map(({ box: [left, top, right, bottom], peak }) => ({
        box: [left / imageWidth, top / imageHeight, right / imageWidth, bottom / imageHeight],
        name: formatPadded(peak, 3),
      })) });
  }
}

const resizeObserver = new ResizeObserver(paintViews);

function step(offset) {
  const scored = visibleItems.filter(isScored);
  const next = scored[scored.indexOf(item) + offset];
  if (next) enlarge(next);
}

export function startZoom() {
  const offsets = { ArrowLeft: -1, ArrowRight: 1 };
  dialog.addEventListener('keydown', (event) => {
    if (!offsets[event.key] || event.target.matches('input')) return;
    event.preventDefault();
    step(offsets[event.key]);
  });
  find('previous').addEventListener('click', () => step(-1));
  find('next').addEventListener('click', () => step(1));
  find('close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    find('tools-place').append(find('tools'));
    resizeObserver.disconnect();
    bitmap?.close();
    [bitmap, views] = [null, []];
    find('views').replaceChildren();
    item?.button.focus();
    item = null;
  });
  find('boxes').addEventListener('change', paintViews);
  find('draw-region').addEventListener('click', () => {
    const [{ size }] = item.results.values();
    openDrawing(item.name, item.file, size);
  });
  find('tools').addEventListener('input', () => {
    overlay.opacity = find('opacity').value / 100;
    overlay.outlines = find('outlines').checked;
    emit('overlay');
    paintViews();
  });
  on('thresholds', update);
}
