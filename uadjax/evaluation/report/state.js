// What the page knows, and what the thresholds make of it.

const find = (id) => document.getElementById(id);
const read = (id) => JSON.parse(find(id).textContent);
const report = read('report');

// Strings that are appended become text, never HTML: names of files and defects come from anywhere.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const make = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

const images = report.images.map((image) => ({ ...image, score: Number(image.score) }));
const good = new Map(report.kinds.map((kind) => [kind.name, kind.good]));

// Scores of each kind, sorted so that counting is searching.
const sorted = (scores) => Float64Array.from(scores).sort();
const kinds = report.kinds.map(({ name }) => ({
  name,
  good: good.get(name),
  counted: true,
  scores: sorted(images.filter((image) => image.defect === name).map((image) => image.score)),
}));
const heldOut = [{
  name: 'good, held out',
  good: true,
  counted: false,
  scores: sorted(report.held_out.map(Number)),
}].filter(({ scores }) => scores.length);

const calibrated = { review: Number(report.thresholds.review), ng: Number(report.thresholds.ng) };
const limits = { ...calibrated };
const followers = [];

// A follower is told whether the threshold stays there, or is still being dragged.
function follow(follower) {
  followers.push(follower);
  follower(true);
}

function moveTo(changes, settled = true) {
  Object.assign(limits, changes);
  // Neither passes the other: the one that is moved takes the other along.
  if ('ng' in changes) limits.review = Math.min(limits.review, limits.ng);
  else limits.ng = Math.max(limits.ng, limits.review);
  for (const follower of followers) follower(settled);
}

const verdict = (score) =>
  score <= limits.review ? 'OK' : score <= limits.ng ? 'review' : 'NG';

function above(scores, limit) {
  let [low, high] = [0, scores.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] <= limit) low = middle + 1;
    else high = middle;
  }
  return scores.length - low;
}

function tally({ scores }) {
  const [more, ng] = [above(scores, limits.review), above(scores, limits.ng)];
  return { images: scores.length, OK: scores.length - more, review: more - ng, NG: ng };
}

// Over all test images that are good, or all that are defective.
function total(ofGood) {
  const sum = { images: 0, OK: 0, review: 0, NG: 0 };
  for (const kind of kinds.filter((one) => one.good === ofGood)) {
    for (const [name, count] of Object.entries(tally(kind))) sum[name] += count;
  }
  return sum;
}

function rates() {
  const [right, bad] = [total(true), total(false)];
  const share = (part, whole) => (whole ? part / whole : null);
  return {
    right,
    bad,
    alarms: share(right.NG, right.images),
    missed: share(bad.images - bad.NG, bad.images),
    recall: share(bad.NG, bad.images),
    precision: share(bad.NG, bad.NG + right.NG),
    f1: share(2 * bad.NG, 2 * bad.NG + right.NG + bad.images - bad.NG),
  };
}

// A share with as many digits as tell it from none and from all.
function percent(share) {
  if (share === null) return '–';
  const distance = 100 * Math.min(share, 1 - share);
  const digits = distance > 0 ? Math.max(0, Math.ceil(-Math.log10(distance) - 1e-9)) : 0;
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

const number = (value, digits = 4) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(digits)))
    : String(value).replace('Infinity', '∞').replace('-', '−');

// Okabe and Ito 2008, and a shape besides: told apart without color.
const SHAPES = {
  OK: 'M8 2a6 6 0 1 0 .01 0z',
  review: 'M8 1.5 15 14H1z',
  NG: 'M2.5 2.5h11v11h-11z',
};
const shape = (label) =>
  draw('svg', { viewBox: '0 0 16 16', class: `shape ${label}`, 'aria-hidden': 'true' },
    draw('path', { d: SHAPES[label] }));
const badge = (label) => make('span', { class: 'badge' }, shape(label), label);
