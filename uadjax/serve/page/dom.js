// DOM helpers. Appended strings become text nodes, never HTML: file names are untrusted.

export const find = (id) => document.getElementById(id);

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
  (Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : '–').replace('-', '−');

// Keeps trailing zeros, so that numbers in a list line up.
export const formatPadded = (value, digits = 4) =>
  (Math.abs(value) >= 1e-3 && Math.abs(value) < 10 ** digits
    ? value.toPrecision(digits).replace('-', '−') : formatNumber(value, digits));

// Uses as many decimals as are needed to distinguish values within a range of this length.
export function formatInRange(value, length) {
  if (!Number.isFinite(value)) return '–';
  const digits = length > 0 ? Math.min(8, Math.max(0, Math.ceil(3 - Math.log10(length)))) : 4;
  return value.toFixed(digits).replace('-', '−');
}

export const plural = (count, singular, more = `${singular}s`) =>
  `${count} ${count === 1 ? singular : more}`;

// Colors of Okabe and Ito 2008. Each label also has its own shape, for readers without color.
const SHAPES = {
  OK: 'M8 2a6 6 0 1 0 .01 0z',
  review: 'M8 1.5 15 14H1z',
  NG: 'M2.5 2.5h11v11h-11z',
  failed: 'M3 1 8 6 13 1 15 3 10 8 15 13 13 15 8 10 3 15 1 13 6 8 1 3z',
};
const makeShape = (label) =>
  makeSvg('svg', { viewBox: '0 0 16 16', class: `shape ${label}`, 'aria-hidden': 'true' },
    makeSvg('path', { d: SHAPES[label] }));
export const makeBadge = (label) => make('span', { class: 'badge' }, makeShape(label), label);

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

export function downloadJson(name, text) {
  const link = make('a', {
    href: URL.createObjectURL(new Blob([text], { type: 'application/json' })), download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
