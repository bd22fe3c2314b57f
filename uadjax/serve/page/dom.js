// Texts and downloads of the page.

import { formatNumber, make } from './elements.js';

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

export function download(name, content, type) {
  const link = make('a', {
    href: URL.createObjectURL(new Blob([content], { type })), download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
