// State of the page: models with their thresholds, images with their results.

import { colorScale, OPACITY } from './heatmap.js';
import { groupByPart, worstLabel } from './parts.js';
import { changeThresholds, labelImage, regionThreshold } from './thresholds.js';

export const THRESHOLD_KEYS = ['imageThreshold', 'reviewThreshold', 'pixelThreshold'];

export const models = new Map();  // By name: { name, directory, calibrated, thresholds, region }.
export const selectedModels = [];  // Name of the model, or of the two models being compared.
export const items = [];  // { name, file, part, results and errors by model }.
export const overlay = { opacity: OPACITY, outlines: true };

const bus = new EventTarget();

// Topics: models, items, overlay, and thresholds (detail: false while a slider is being dragged).
export const on = (topic, callback) =>
  bus.addEventListener(topic, ({ detail }) => callback(detail));
export const emit = (topic, detail) => bus.dispatchEvent(new CustomEvent(topic, { detail }));

// `region` is the outline of the region of interest; null for a model that inspects whole images.
export function setModels(descriptions) {
  for (const { name, directory, thresholds, region } of descriptions) {
    // JSON has no infinity: null is a threshold that no value exceeds.
    const calibrated = Object.fromEntries(
      THRESHOLD_KEYS.map((key) => [key, thresholds[key] ?? Infinity]));
    models.set(name, { name, directory, calibrated, thresholds: { ...calibrated }, region });
  }
  selectedModels.splice(0, 2, descriptions[0].name);
}

// Colors follow the pixel threshold; the upper end is that of the calibrated image threshold.
export function colorScaleOf(name) {
  const { thresholds: { pixelThreshold }, calibrated: { imageThreshold } } = models.get(name);
  return colorScale(pixelThreshold, imageThreshold);
}

export function selectModels(first, second) {
  selectedModels.splice(0, 2, ...(second && second !== first ? [first, second] : [first]));
  emit('models');
}

export function setThresholds(name, changes, isFinal = true) {
  changeThresholds(models.get(name).thresholds, changes);
  emit('thresholds', isFinal);
}

// Returns OK, review, NG or failed; '' while the item is waiting.
export function labelOf(item, name) {
  const result = item.results.get(name);
  if (result) return labelImage(result, models.get(name).thresholds);
  return item.errors.has(name) ? 'failed' : '';
}

// Returns the map value above which pixels belong to the regions of an item, at the current
// thresholds. `peak` is the largest value of its map.
export const regionThresholdOf = (item, name, peak) =>
  regionThreshold(labelOf(item, name), peak, models.get(name).thresholds);

export const labelsOf = (item) => selectedModels.map((name) => labelOf(item, name));
// Until the service has listed its models, none is selected and nothing is done.
export const isDone = (item) => selectedModels.length > 0
  && selectedModels.every((name) => labelOf(item, name));
export const isScored = (item) => selectedModels.some((name) => item.results.has(name));

export function isDisagreement(item) {
  const [first, second] = labelsOf(item);
  return Boolean(first && second && first !== second);
}

export function countLabels(name) {
  const counts = { OK: 0, review: 0, NG: 0, failed: 0, '': 0 };
  for (const item of items) counts[labelOf(item, name)]++;
  return counts;
}

// Returns the label of each part by its name; '' while one of its images is waiting.
export const labelParts = (name) => new Map([...groupByPart(items)].map(([part, ofPart]) =>
  [part, worstLabel(ofPart.map((item) => labelOf(item, name)))]));

// Returns the range of map values or scores, thresholds included, with a margin.
export function valueRange(name, key) {
  const { calibrated, thresholds } = models.get(name);
  const results = items.map((item) => item.results.get(name)).filter(Boolean);
  const isPixel = key === 'pixelThreshold';
  const keys = isPixel ? ['pixelThreshold'] : ['imageThreshold', 'reviewThreshold'];
  const values = isPixel ? results.flatMap(({ low, high }) => [low, high])
    : results.map(({ score }) => score);
  const all = [...values, ...keys.map((k) => calibrated[k])].filter(Number.isFinite);
  if (!all.length) return [0, 1];
  const [low, high] = [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  const margin = values.length ? 0.06 * (high - low) : 0;
  const [from, to] = high - low > 1e-9 * Math.abs(high) ? [low - margin, high + margin]
    : [low - (Math.abs(low) || 1), high + (Math.abs(high) || 1)];
  const current = keys.map((k) => thresholds[k]).filter(Number.isFinite);
  return [Math.min(from, ...current), Math.max(to, ...current)];
}

export function summarize() {
  const partLabels = new Map(selectedModels.map((name) => [name, labelParts(name)]));
  return {
    made_by: 'uadjax',
    models: selectedModels.map((name) => ({
      model: name, thresholds: toSnakeCase(models.get(name).thresholds),
      calibrated_thresholds: toSnakeCase(models.get(name).calibrated),
    })),
    images: items.map((item) => ({
      name: item.name,
      ...(item.part && { part: item.part }),
      verdicts: selectedModels.map((name) => {
        const result = item.results.get(name);
        const part = item.part && { part_label: partLabels.get(name).get(item.part) };
        if (!result) {
          return { model: name, error: item.errors.get(name) ?? 'not scored yet', ...part };
        }
        // The service found the regions at its own thresholds, not at those of the sliders.
        const { size, score, warnings, peak, at, regions, regionsPixelThreshold } = result;
        return { model: name, score, label: labelOf(item, name), warnings, size, peak, at, regions,
          regions_pixel_threshold: regionsPixelThreshold, ...part };
      }),
    })),
  };
}

const CSV_COLUMNS = ['name', 'model', 'score', 'label', 'warnings', 'peak', 'x', 'y', 'height',
  'width', 'image_threshold', 'review_threshold', 'pixel_threshold', 'part', 'part_label', 'error'];

// Returns the names of columns, and a row for each image and model.
export function tabulate() {
  const summary = summarize();
  const rows = summary.images.flatMap(({ name, part, verdicts }) => verdicts.map((verdict, i) => {
    const [[x, y], [height, width]] = [verdict.at ?? [], verdict.size ?? []];
    const warnings = verdict.warnings?.map(({ code }) => code).join(' ');
    const { thresholds } = summary.models[i];
    const cells = { name, part, ...verdict, warnings, x, y, height, width, ...thresholds };
    return CSV_COLUMNS.map((column) => cells[column]);
  }));
  return [CSV_COLUMNS, ...rows];
}

const toSnakeCase = ({ imageThreshold, reviewThreshold, pixelThreshold }) => ({
  image_threshold: imageThreshold, review_threshold: reviewThreshold,
  pixel_threshold: pixelThreshold,
});
