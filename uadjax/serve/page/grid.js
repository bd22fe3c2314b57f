// The cards: photograph, map and verdicts of each image, in an order of one's choice.

import { badge, even, find, make, plural, soon } from './dom.js';
import { outlines, levels, opened, paint, tinted } from './heat.js';
import { chosen, disagree, isJudged, items, labelOf, labels, models, on, over } from './state.js';

const PHOTO = 480;  // Pixels of a card's photograph at most.
const MAP = 224;
let show = () => {};
let outlined = '';  // Pixel thresholds.
export const shown = [];  // In their order.

export function startGrid(enlarge) {
  show = enlarge;
  for (const id of ['order', 'show']) find(id).addEventListener('change', arrange);
  on('models', () => {
    items.forEach(dress);
    const several = chosen.length > 1;
    find('tiles').classList.toggle('several', several);
    const option = find('show').querySelector('[value=disagree]');
    option.hidden = option.disabled = !several;
    if (!several && find('show').value === 'disagree') find('show').value = '';
    arrange();
  });
  on('items', soon(() => {
    items.forEach((item) => item.tile ?? makeTile(item));
    items.forEach(label);
    arrange();
    repaint();
  }));
  on('limits', (settled) => {
    items.forEach(label);
    if (settled) arrange();  // Cards must not dance while a threshold is dragged.
    const now = chosen.map((name) => models.get(name).limits.pixel).join();
    if (now !== outlined) repaint();
    outlined = now;
  });
  on('over', repaint);
  new ResizeObserver(repaint).observe(find('tiles'));
}

function makeTile(item) {
  item.views = make('span', { class: 'views' });
  item.told = make('span', { class: 'told' });
  item.button = make('button', { type: 'button' }, item.views, item.told,
    make('bdi', { class: 'path', title: item.name }, item.name));
  item.button.addEventListener('click', () => isJudged(item) && show(item));
  item.tile = make('li', {}, item.button);
  item.tile.item = item;
  dress(item);
  near.observe(item.tile);
}

// A picture for each model.
function dress(item) {
  if (!item.tile) return;
  item.labelled = '';
  item.canvases = chosen.map(() => make('canvas', { width: 0, height: 0 }));
  item.views.replaceChildren(...item.canvases);
  label(item);
  paintTile(item);
}

function label(item) {
  if (!item.tile) return;
  const said = labels(item);
  const key = said.join();
  if (item.labelled === key) return;
  item.labelled = key;
  item.tile.classList.toggle('apart', disagree(item));
  item.button.setAttribute('aria-disabled', String(!isJudged(item)));
  item.told.replaceChildren(...chosen.map((name) => line(item, name)));
}

function line(item, name) {
  const said = labelOf(item, name);
  const row = make('span', { class: 'verdict' });
  if (chosen.length > 1) row.append(make('bdi', { class: 'model' }, name));
  if (!said) row.append(make('span', { class: 'waiting' }, 'waiting'));
  else row.append(badge(said));
  const score = item.results.get(name)?.score;
  if (said === 'failed') row.append(make('span', { class: 'problem' }, item.errors.get(name)));
  else if (said) row.append(make('span', { class: 'score' }, even(score ?? NaN)));
  return row;
}

// Only what is near the screen is drawn, and holds a photograph.
const near = new IntersectionObserver((entries) => {
  for (const { target: { item }, isIntersecting } of entries) {
    item.near = isIntersecting;
    if (isIntersecting) paintTile(item);
    else release(item);
  }
}, { rootMargin: '400px' });

export function release(item) {
  item.photo?.then((bitmap) => bitmap?.close());
  item.photo = null;
  for (const canvas of item.canvases ?? []) canvas.width = canvas.height = 0;
  for (const result of item.results.values()) result.tint = result.outline = null;
}

export function forget(item) {
  release(item);
  if (item.tile) near.unobserve(item.tile);
}

async function paintTile(item) {
  if (!item.near) return;
  item.photo ??= opened(item.file, PHOTO).catch(() => null);
  const held = item.photo;
  const photo = await held;
  const names = [...chosen];
  const results = names.map((name) => item.results.get(name));
  const maps = await Promise.all(results.map((result) => result && (result.small ??=
    levels(result, MAP))));
  if (held !== item.photo || names.some((name, i) => name !== chosen[i])) return;
  item.tile.classList.toggle('blank', !photo && !results.some(Boolean));
  names.forEach((name, i) => {
    const [result, heat, canvas] = [results[i], maps[i], item.canvases[i]];
    const [high, wide] = result?.size ?? [photo?.height ?? 1, photo?.width ?? 1];
    const ratio = Math.min(window.devicePixelRatio, 2);
    const fit = ratio * canvas.clientWidth / Math.max(wide, high);
    const [width, height] = [wide, high].map((side) => Math.max(1, Math.round(side * fit)));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    if (result) follow(result, heat, models.get(name));
    paint(canvas, ratio, { photo, tint: result?.tint, outline: result?.outline });
  });
}

function follow(result, heat, { limits, calibrated }) {
  result.tint ??= tinted(heat, calibrated.pixel);
  if (result.outline && result.outlined === limits.pixel) return;
  result.outline = outlines(heat, limits.pixel);
  result.outlined = limits.pixel;
}

const repaint = soon(() => shown.filter((item) => item.near).forEach(paintTile));

const score = (item) => item.results.get(chosen[0])?.score ?? Infinity;
const rank = (item) => ['failed', 'judged', ''].indexOf(
  labelOf(item, chosen[0]) && (item.results.has(chosen[0]) ? 'judged' : 'failed'));

function wanted(item, what) {
  if (!what) return true;
  return what === 'disagree' ? disagree(item) : labels(item).includes(what);
}

// New order only where there is one: who is somewhere in it by keyboard stays there.
function arrange() {
  const what = find('show').value;
  const next = items.filter((item) => item.tile && wanted(item, what));
  if (find('order').value === 'worst') {
    next.sort((a, b) => rank(a) - rank(b) || (rank(a) === 1 ? score(b) - score(a) || 0 : 0));
  }
  if (next.length !== shown.length || next.some((item, i) => item !== shown[i])) {
    shown.splice(0, shown.length, ...next);
    const held = document.activeElement;
    find('tiles').replaceChildren(...next.map(({ tile }) => tile));
    if (held?.isConnected && held.closest('#tiles')) held.focus({ preventScroll: true });
  }
  const apart = chosen.length > 1
    ? `; the models disagree on ${plural(items.filter(disagree).length, 'image')}` : '';
  find('shown').textContent = `${next.length} of ${plural(items.length, 'image')}${apart}.`;
}
