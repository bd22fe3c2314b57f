// An image with its heatmap, and the outlines and boxes of anomalous regions.

import { contour } from './contour.js';
import { make } from './dom.js';
import { overlay } from './state.js';

// Every sixteenth color of matplotlib's plasma, as in the report.
const COLOR_STOPS = ('0c07863104964c02a16500a77e03a79511a1a92395bb3586cb4777d95969e56c5bf0804df895'
  + '40fcac32fdc427f8df24eff821').match(/../g).map((byte) => parseInt(byte, 16));

function colorAt(share) {
  const position = Math.min(15.999, Math.max(0, 16 * share));
  const [i, weight] = [3 * Math.floor(position), position % 1];
  return [0, 1, 2].map((c) => COLOR_STOPS[i + c] * (1 - weight) + COLOR_STOPS[i + 3 + c] * weight);
}

// Decodes an image, shrunk so that no side exceeds `maxSide`. Rejects formats unknown to the
// browser. `exact` ignores color profiles.
export async function decodeImage(blob, maxSide, exact = false) {
  const options = exact ? { colorSpaceConversion: 'none' } : {};
  const original = await createImageBitmap(blob, options);
  const scale = maxSide / Math.max(original.width, original.height);
  if (scale >= 1) return original;
  const resized = await createImageBitmap(original, {
    resizeWidth: Math.max(1, Math.round(scale * original.width)),
    resizeHeight: Math.max(1, Math.round(scale * original.height)),
    resizeQuality: 'medium',
  });
  original.close();
  return resized;
}

// Returns the anomaly map of a result as levels from 0 (`low`) to 255 (`high`).
export async function readLevels({ heatmap, low, high }, maxSide) {
  const bitmap = await decodeImage(heatmap, maxSide, true);
  const { width, height } = bitmap;
  const canvas = make('canvas', { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const gray = new Uint8Array(width * height);
  for (let i = 0; i < gray.length; i++) gray[i] = data[4 * i];
  return { gray, width, height, low, high };
}

export const levelToValue = ({ low, high }, level) => low + level / 255 * (high - low);

// Converts a threshold to a level. It is at least -0.5, above the -1 outside of the map.
function thresholdToLevel({ low, high }, threshold) {
  if (high > low) return Math.max(-0.5, 255 * (threshold - low) / (high - low));
  return low > threshold ? -0.5 : 255;
}

// Colors a heatmap on a scale centered at the threshold; larger values are more opaque. The same
// scale as in result images, see `uadjax.visualization.heatmap`.
export function colorize(heatmap, threshold) {
  const { gray, width, height, low, high } = heatmap;
  const histogram = new Uint32Array(256);
  for (const level of gray) histogram[level]++;
  let [percentile, count] = [0, 0];  // The level of the first percentile.
  while (percentile < 255 && (count += histogram[percentile]) < gray.length / 100) percentile++;
  const middle = Number.isFinite(threshold) ? threshold : high;
  const halfRange =
    Math.max(middle - levelToValue(heatmap, percentile), Math.abs(middle) / 2, 1e-30);
  const top = Math.max(high, middle + halfRange);
  const palette = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(palette.buffer);
  for (let level = 0; level < 256; level++) {
    const offset = levelToValue(heatmap, level) - middle;
    const share =
      Math.min(1, Math.max(0, 0.5 + 0.5 * offset / (offset < 0 ? halfRange : top - middle)));
    bytes.set(colorAt(share), 4 * level);
    bytes[4 * level + 3] = 255 * (share < 0.5 ? 1.32 * share : share ** 0.6);
  }
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < gray.length; i++) pixels[i] = palette[gray[i]];
  const canvas = make('canvas', { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

// Returns closed outlines of the values above a threshold, as a path over the unit square.
export function traceOutlines(heatmap, threshold) {
  return contour(heatmap, thresholdToLevel(heatmap, threshold));
}

// Finds the 8-connected regions above a threshold, the highest peak first. Coordinates are pixels
// of an image of the given height and width.
export function findRegions(heatmap, threshold, [imageHeight, imageWidth]) {
  const { gray, width, height } = heatmap;
  const level = thresholdToLevel(heatmap, threshold);
  const [scaleX, scaleY] = [imageWidth / width, imageHeight / height];
  const visited = new Uint8Array(gray.length);
  const regions = [];
  for (let start = 0; start < gray.length; start++) {
    if (visited[start] || gray[start] <= level) continue;
    const stack = [start];
    visited[start] = 1;
    let [left, top, right, bottom, area, peak] = [width, height, 0, 0, 0, start];
    while (stack.length) {
      const i = stack.pop();
      const [x, y] = [i % width, Math.floor(i / width)];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      area++;
      if (gray[i] > gray[peak]) peak = i;
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const j = v * width + u;
          if (visited[j] || gray[j] <= level) continue;
          visited[j] = 1;
          stack.push(j);
        }
      }
    }
    regions.push({
      box: [left * scaleX, top * scaleY, (right + 1) * scaleX, (bottom + 1) * scaleY]
        .map(Math.round),
      area: Math.round(area * scaleX * scaleY), peak: levelToValue(heatmap, gray[peak]),
      at: [(peak % width + 0.5) * scaleX, (Math.floor(peak / width) + 0.5) * scaleY]
        .map(Math.floor),
    });
  }
  return regions.sort((a, b) => b.peak - a.peak);
}

const CASING_COLOR = 'rgb(0 0 0 / 70%)';

// Paints a canvas. `ratio` is device pixels per CSS pixel; line widths are in CSS pixels.
export function paint(canvas, ratio, { bitmap, tint, outline, boxes = [] }) {
  const { width, height } = canvas;
  const context = canvas.getContext('2d');
  context.clearRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.fillStyle = '#808890';  // The background when the browser cannot decode the image.
  if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
  if (tint) {
    context.globalAlpha = overlay.opacity;
    context.drawImage(tint, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  context.lineJoin = 'round';
  const strokes = [[CASING_COLOR, 3.5], ['#00E5FF', 1.75]];
  if (outline && overlay.outlines) {
    const path = new Path2D();
    path.addPath(outline, new DOMMatrix([width, 0, 0, height, 0, 0]));
    for (const [color, lineWidth] of strokes) {
      [context.strokeStyle, context.lineWidth] = [color, lineWidth * ratio];
      context.stroke(path);
    }
  }
  drawBoxes(context, boxes, ratio);
}

// Boxes are a little larger than their regions. A name that would cover an earlier one is omitted.
function drawBoxes(context, boxes, ratio) {
  const { width, height } = context.canvas;
  const margin = 4 * ratio;
  const drawnNames = [];
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  const rectangles = boxes.map(({ box: [left, top, right, bottom], name }) => ({
    name, x: left * width - margin, y: top * height - margin,
    w: (right - left) * width + 2 * margin, h: (bottom - top) * height + 2 * margin,
  }));
  for (const { x, y, w, h } of rectangles) {
    for (const [color, lineWidth] of [[CASING_COLOR, 3], ['#ffffff', 1.5]]) {
      [context.strokeStyle, context.lineWidth] = [color, lineWidth * ratio];
      context.strokeRect(x, y, w, h);
    }
  }
  for (const { name, x, y, h } of rectangles) {
    const [textWidth, textHeight] = [context.measureText(name).width + 8 * ratio, 17 * ratio];
    const textX = Math.max(0, Math.min(x, width - textWidth));
    const textY = y > textHeight ? y - textHeight : Math.min(y + h, height - textHeight);
    if (drawnNames.some(([u, v, length]) =>
      textX < u + length && u < textX + textWidth && Math.abs(textY - v) < textHeight)) continue;
    drawnNames.push([textX, textY, textWidth]);
    context.fillStyle = 'rgb(0 0 0 / 78%)';
    context.fillRect(textX, textY, textWidth, textHeight);
    context.fillStyle = '#ffffff';
    context.fillText(name, textX + 4 * ratio, textY + 13 * ratio);
  }
}
