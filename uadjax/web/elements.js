// Elements and texts of the report and of the service's page.

export const find = (id) => document.getElementById(id);

// Appended strings become text nodes, never HTML: names of files and defects are untrusted.
export function configure(element, attributes, children = []) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
export const make = (tag, attributes = {}, ...children) =>
  configure(document.createElement(tag), attributes, children);
export const makeSvg = (tag, attributes = {}, ...children) =>
  configure(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

export const formatNumber = (value, digits = 4) =>
  String(Number.isFinite(value) ? Number(value.toPrecision(digits)) : value)
    .replace('Infinity', '∞').replace('NaN', '–').replace(/^-/, '−');

// Uses as many digits as are needed to distinguish a share from 0 and 100 %.
export function formatPercent(share) {
  if (share === null) return '–';
  const distance = 100 * Math.min(share, 1 - share);
  const digits = distance > 0 ? Math.max(0, Math.ceil(-Math.log10(distance) - 1e-9)) : 0;
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

// Colors of Okabe and Ito 2008. Each label also has its own shape, for readers without color.
const SHAPES = {
  OK: 'M8 2a6 6 0 1 0 .01 0z',
  review: 'M8 1.5 15 14H1z',
  NG: 'M2.5 2.5h11v11h-11z',
  failed: 'M3 1 8 6 13 1 15 3 10 8 15 13 13 15 8 10 3 15 1 13 6 8 1 3z',
};
export const makeBadge = (label) => make('span', { class: 'badge' },
  makeSvg('svg', { viewBox: '0 0 16 16', class: `shape ${label}`, 'aria-hidden': 'true' },
    makeSvg('path', { d: SHAPES[label] })), label);

// Returns a function that runs the callback once in the next frame, however often it is called.
export function oncePerFrame(callback) {
  let frame = 0;
  return () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      callback();
    });
  };
}

// Paints a closed path over the unit square into a box of a canvas, with a dark edge on both sides.
// `ratio` is device pixels per CSS pixel.
export function strokePath(context, unitPath, { x, y, width, height }, ratio, color, dashes = []) {
  const path = new Path2D();
  path.addPath(unitPath, new DOMMatrix([width, 0, 0, height, x, y]));
  context.lineJoin = 'round';
  const strokes = [['rgb(0 0 0 / 70%)', 3.5, []], [color, 1.75, dashes]];
  for (const [style, lineWidth, segments] of strokes) {
    context.setLineDash(segments.map((length) => length * ratio));
    [context.strokeStyle, context.lineWidth] = [style, lineWidth * ratio];
    context.stroke(path);
  }
}

// Over the pixels of an image that are not inspected.
export const SHADE = 'rgb(0 0 0 / 60%)';

// Dims a box of a canvas outside of a closed path over the unit square, the region of interest, and
// outlines the path thinly. `ratio` is device pixels per CSS pixel.
export function showRegion(context, unitPath, { x, y, width, height }, ratio) {
  const region = new Path2D();
  region.addPath(unitPath, new DOMMatrix([width, 0, 0, height, x, y]));
  const outside = new Path2D(region);
  outside.rect(x, y, width, height);
  context.fillStyle = SHADE;
  context.fill(outside, 'evenodd');
  context.setLineDash([]);
  [context.strokeStyle, context.lineWidth] = ['#ffffff', ratio];
  context.stroke(region);
}
