// Verdicts on parts, by the rules of `uadjax.inference.parts`: the worst of the images of a part.

// From the best to the worst. A part with an image that failed was not inspected completely.
const LABELS = ['OK', 'review', 'failed', 'NG'];

// Returns the worst of some labels; '' if one of them is '', that of an image not scored yet.
export const worstLabel = (labels) => (labels.includes('') ? ''
  : LABELS[labels.reduce((worst, label) => Math.max(worst, LABELS.indexOf(label)), 0)]);

// Compares names of images or parts in natural order.
export const compareNames = new Intl.Collator('en', { numeric: true }).compare;

// Compares { part, label } to sort the worst part first; what has no part comes last.
export const compareParts = (a, b) => LABELS.indexOf(b.label) - LABELS.indexOf(a.label)
  || Boolean(b.part) - Boolean(a.part) || compareNames(a.part, b.part);

// Returns the images of each part by its name; images without a part are omitted.
export function groupByPart(images) {
  const parts = new Map();
  for (const image of images) {
    if (!image.part) continue;
    if (!parts.has(image.part)) parts.set(image.part, []);
    parts.get(image.part).push(image);
  }
  return parts;
}
