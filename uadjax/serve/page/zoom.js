// One image, large: its maps, what is marked, and values under the cursor.

import { badge, even, find, fill, make, number } from './dom.js';
import { outlines, levels, opened, paint, regions, tinted, valueOf } from './heat.js';
import { shown } from './grid.js';
import { control } from './panel.js';
import { chosen, isJudged, labelOf, models, on, over, tell } from './state.js';

const LARGEST = 1600;  // Pixels of a photograph; of a map, which is smoother:
const MAP = 1024;
const LISTED = 12;  // Regions.
const dialog = find('zoom');
let item = null;
let views = [];
let photo = null;

// A picture of the image for each model, with what it says below.
function makeView(name) {
  const canvas = make('canvas', { role: 'img', 'aria-label': `Map by ${name}` });
  const holder = make('div', { class: 'holder' }, canvas);
  const told = make('span', { class: 'verdict' });
  const list = make('ol', { class: 'regions' });
  const about = make('details', {}, make('summary', {}, 'Regions'), list);
  const element = make('figure', {}, holder, make('figcaption', {}, told, control(name, 'pixel'),
    about));
  const view = { name, canvas, holder, told, about, list, element };
  canvas.addEventListener('pointermove', (event) => point(event, canvas));
  canvas.addEventListener('pointerleave', () => hint());
  return view;
}

function hint() {
  find('cursor').textContent = 'Point at a pixel to read the map there; the arrow keys go on.';
}

function point(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  if (share.some((part) => part < 0 || part >= 1)) return;
  const told = views.filter(({ heat }) => heat).map(({ name, heat, result: { size } }) => {
    const [x, y] = [Math.floor(share[0] * size[1]), Math.floor(share[1] * size[0])];
    const [u, v] = [Math.floor(share[0] * heat.width), Math.floor(share[1] * heat.height)];
    const value = valueOf(heat, heat.gray[v * heat.width + u]);
    const marked = value > models.get(name).limits.pixel ? 'marked' : 'not marked';
    const at = `x ${x}, y ${y}: `;
    return { at, said: `${views.length > 1 ? `${name} ` : ''}${number(value)}, ${marked}` };
  });
  const [first] = told;
  if (first) find('cursor').textContent = first.at + told.map(({ said }) => said).join('; ');
}

export async function enlarge(which) {
  item = which;
  if (!dialog.open) {
    find('zoom-tools').prepend(find('tools'));  // The same settings, within reach.
    views = chosen.map(makeView);
    find('views').replaceChildren(...views.map(({ element }) => element));
    find('views').classList.toggle('several', views.length > 1);
    for (const { holder } of views) watch.observe(holder);
    dialog.showModal();
  }
  hint();
  head();
  const mine = views;
  const loaded = await Promise.all([
    opened(which.file, LARGEST).catch(() => null),
    ...views.map(({ name }) => which.results.has(name) && levels(which.results.get(name), MAP)),
  ]);
  if (item !== which || mine !== views || !dialog.open) {
    loaded[0]?.close();
    return;
  }
  photo?.close();
  photo = loaded[0];
  views.forEach((view, i) => {
    [view.heat, view.result] = [loaded[i + 1] || null, which.results.get(view.name)];
    view.tint = view.heat && tinted(view.heat, models.get(view.name).calibrated.pixel);
    view.limit = null;
  });
  if (!photo) find('cursor').textContent = 'This browser cannot show photographs of that format.';
  refresh();
}

function head() {
  find('zoom-name').textContent = item.name;
  const at = shown.filter(isJudged);
  const [{ size: [high, wide] }] = item.results.values();
  find('zoom-told').textContent = `${at.indexOf(item) + 1} of ${at.length}, ${wide} × ${high}`;
  for (const { name, told } of views) {
    const score = item.results.get(name)?.score;
    told.replaceChildren(...(chosen.length > 1 ? [make('bdi', { class: 'model' }, name)] : []),
      badge(labelOf(item, name) || 'waiting'),
      score === undefined ? item.errors.get(name) ?? '' : `score ${number(score ?? NaN, 6)}`);
  }
}

// What the thresholds make of it; the service has said it of its own.
function refresh() {
  if (!dialog.open) return;
  head();
  for (const view of views) {
    const { name, heat, result } = view;
    const { limits: { pixel }, calibrated } = models.get(name);
    view.about.hidden = !result;  // Else there is room from the first: nothing jumps.
    if (heat && view.limit !== pixel) {
      view.limit = pixel;
      view.outline = outlines(heat, pixel);
      view.regions = pixel === calibrated.pixel ? result.regions
        : regions(heat, pixel, result.size);
      list(view);
    }
  }
  paintNow();
}

function list({ about, list: element, regions: found, result }) {
  const more = found.length > LISTED ? `, the ${LISTED} highest are listed` : '';
  about.firstChild.textContent = found.length === 1 ? '1 region' : `${found.length} regions${more}`;
  const [high, wide] = result.size;
  element.replaceChildren(...found.slice(0, LISTED).map(({ peak, at, area }) => make('li', {},
    `peak ${number(peak)} at x ${at[0]}, y ${at[1]}; ${area} of ${high * wide} pixels`)));
}

function paintNow() {
  for (const { canvas, holder, tint, outline, result, regions: found } of views) {
    const [high, wide] = result?.size ?? [photo?.height ?? 1, photo?.width ?? 1];
    const ratio = window.devicePixelRatio;
    const fit = Math.min(holder.clientWidth / wide, holder.clientHeight / high);
    if (!(fit > 0)) continue;
    const [width, height] = [wide * fit, high * fit];
    fill(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    const boxes = find('boxes').checked && result ? found.slice(0, LISTED) : [];
    paint(canvas, ratio, { photo, tint, outline: result && outline,
      boxes: boxes.map(({ box: [left, top, right, bottom], peak }) => ({
        box: [left / wide, top / high, right / wide, bottom / high], name: even(peak, 3),
      })) });
  }
}

const watch = new ResizeObserver(paintNow);

function step(by) {
  const all = shown.filter(isJudged);
  const next = all[all.indexOf(item) + by];
  if (next) enlarge(next);
}

export function startZoom() {
  const keys = { ArrowLeft: -1, ArrowRight: 1 };
  dialog.addEventListener('keydown', (event) => {
    if (!keys[event.key] || event.target.matches('input')) return;
    event.preventDefault();
    step(keys[event.key]);
  });
  find('before').addEventListener('click', () => step(-1));
  find('after').addEventListener('click', () => step(1));
  find('close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    find('tools-place').append(find('tools'));
    watch.disconnect();
    photo?.close();
    [photo, views] = [null, []];
    find('views').replaceChildren();
    item?.button.focus();
    item = null;
  });
  find('boxes').addEventListener('change', paintNow);
  find('tools').addEventListener('input', () => {
    over.opacity = find('opacity').value / 100;
    over.marked = find('marked').checked;
    tell('over');
    paintNow();
  });
  on('limits', refresh);
}
