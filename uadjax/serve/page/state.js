// What the page knows: models with their thresholds, images with their verdicts.

export const models = new Map();  // By name: { name, calibrated, limits, about }.
export const chosen = [];  // Names of one model, or of two that are compared.
export const items = [];  // { name, file, results and errors by model }.
export const over = { opacity: 0.7, marked: true };  // What is laid over images.

const bus = new EventTarget();

// Topics: models, items, limits (detail: whether they stay there, or are still dragged), over.
export const on = (topic, act) => bus.addEventListener(topic, ({ detail }) => act(detail));
export const tell = (topic, detail) => bus.dispatchEvent(new CustomEvent(topic, { detail }));

export function know(about) {
  for (const one of about) {
    // What is not finite is no number in JSON: such a threshold is never exceeded.
    const calibrated = Object.fromEntries(
      Object.entries(one.thresholds).map(([key, value]) => [key, value ?? Infinity]));
    models.set(one.name, { name: one.name, calibrated, limits: { ...calibrated }, about: one });
  }
  chosen.splice(0, 2, about[0].name);
}

export function choose(first, second) {
  chosen.splice(0, 2, ...(second && second !== first ? [first, second] : [first]));
  tell('models');
}

// Neither passes the other: the one that is moved takes the other along.
export function move(name, changes, settled = true) {
  const { limits } = models.get(name);
  Object.assign(limits, changes);
  if ('image' in changes) limits.review = Math.min(limits.review, limits.image);
  else limits.image = Math.max(limits.image, limits.review);
  tell('limits', settled);
}

export function verdict(score, { review, image }) {
  if (score === null) return 'NG';  // It was never seen to be good.
  return score <= review ? 'OK' : score <= image ? 'review' : 'NG';
}

// OK, review or NG; failed; or '' while it is waiting.
export function labelOf(item, name) {
  const result = item.results.get(name);
  if (result) return verdict(result.score, models.get(name).limits);
  return item.errors.has(name) ? 'failed' : '';
}

export const labels = (item) => chosen.map((name) => labelOf(item, name));
export const isDone = (item) => chosen.every((name) => labelOf(item, name));
export const isJudged = (item) => chosen.some((name) => item.results.has(name));

export function disagree(item) {
  const [a, b] = labels(item);
  return Boolean(a && b && a !== b);
}

export function counts(name) {
  const found = { OK: 0, review: 0, NG: 0, failed: 0, '': 0 };
  for (const item of items) found[labelOf(item, name)]++;
  return found;
}

// What values reach from and to, thresholds included, with some air.
export function span(name, key) {
  const { calibrated, limits } = models.get(name);
  const results = items.map((item) => item.results.get(name)).filter(Boolean);
  const values = key === 'pixel' ? results.flatMap(({ low, high }) => [low, high])
    : results.map(({ score }) => score);
  const all = [...values, ...(key === 'pixel' ? [calibrated.pixel]
    : [calibrated.image, calibrated.review])].filter(Number.isFinite);
  if (!all.length) return [0, 1];
  const [low, high] = [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  const air = values.length ? 0.06 * (high - low) : 0;
  const [from, to] = high - low > 1e-9 * Math.abs(high) ? [low - air, high + air]
    : [low - (Math.abs(low) || 1), high + (Math.abs(high) || 1)];
  const moved = (key === 'pixel' ? [limits.pixel] : [limits.image, limits.review])
    .filter(Number.isFinite);
  return [Math.min(from, ...moved), Math.max(to, ...moved)];
}

export function summary() {
  return {
    made_by: 'uadjax',
    models: chosen.map((name) => ({
      model: name, thresholds: named(models.get(name).limits),
      thresholds_as_calibrated: named(models.get(name).calibrated),
    })),
    images: items.map((item) => ({
      name: item.name,
      verdicts: chosen.map((name) => {
        const result = item.results.get(name);
        if (!result) return { model: name, error: item.errors.get(name) ?? 'not judged yet' };
        const { size, score, regions, pixelThreshold } = result;
        return { model: name, score, label: labelOf(item, name), size, regions,
          regions_above: pixelThreshold };
      }),
    })),
  };
}

const named = ({ image, review, pixel }) => ({ image, review, pixel });
