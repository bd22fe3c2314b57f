// Small helpers. Strings that are appended become text, never HTML: names come from anywhere.

export const find = (id) => document.getElementById(id);

export function fill(element, attributes, children = []) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
export const make = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

export const number = (value, digits = 4) =>
  (Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : '–').replace('-', '−');

// With all of its digits, so that many can be compared.
export const even = (value, digits = 4) =>
  (Math.abs(value) >= 1e-3 && Math.abs(value) < 10 ** digits
    ? value.toPrecision(digits).replace('-', '−') : number(value, digits));

// As many decimals as tell values of a scale apart.
export function decimals(value, span) {
  if (!Number.isFinite(value)) return '–';
  const digits = span > 0 ? Math.min(8, Math.max(0, Math.ceil(3 - Math.log10(span)))) : 4;
  return value.toFixed(digits).replace('-', '−');
}

export const plural = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

// Okabe and Ito 2008, and a shape besides: told apart without color.
const SHAPES = {
  OK: 'M8 2a6 6 0 1 0 .01 0z',
  review: 'M8 1.5 15 14H1z',
  NG: 'M2.5 2.5h11v11h-11z',
  failed: 'M3 1 8 6 13 1 15 3 10 8 15 13 13 15 8 10 3 15 1 13 6 8 1 3z',
};
const shape = (label) =>
  draw('svg', { viewBox: '0 0 16 16', class: `shape ${label}`, 'aria-hidden': 'true' },
    draw('path', { d: SHAPES[label] }));
export const badge = (label) => make('span', { class: 'badge' }, shape(label), label);

// Once for all calls before the screen is drawn again.
export function soon(act) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      act();
    });
  };
}

export function save(name, text) {
  const link = make('a', {
    href: URL.createObjectURL(new Blob([text], { type: 'application/json' })), download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
