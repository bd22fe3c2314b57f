// An image with its anomaly map, and the outlines and boxes of anomalous regions.

import { contour } from './contour.js';
import { showRegion, strokePath } from './elements.js';
import { readMap } from './heatmap.js';
import { overlay } from './state.js';

export const MISSING_IMAGE = '#808890';  // The background when the browser cannot decode an image.

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

// Returns the anomaly map of a result, shrunk so that no side exceeds `maxSide`.
export async function readResultMap({ heatmap, low, high }, maxSide) {
  const bitmap = await decodeImage(heatmap, maxSide, true);
  const map = readMap(bitmap, low, high);
  bitmap.close();
  return map;
}

// Returns the white part of a PNG in base64, a region of interest, as a path over the unit square.
export async function readRegion(png) {
  const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
  const path = contour(readMap(bitmap, 0, 1), 0.5);
  bitmap.close();
  return path;
}

// Finds the 8-connected regions above a threshold, the highest peak first. Coordinates are pixels
// of an image of the given height and width.
export function findRegions({ values, width, height }, threshold, [imageHeight, imageWidth]) {
  const [scaleX, scaleY] = [imageWidth / width, imageHeight / height];
  const visited = new Uint8Array(values.length);
  const regions = [];
  for (let start = 0; start < values.length; start++) {
    if (visited[start] || !(values[start] > threshold)) continue;
    const stack = [start];
    visited[start] = 1;
    let [left, top, right, bottom, area, peak] = [width, height, 0, 0, 0, start];
    while (stack.length) {
      const i = stack.pop();
      const [x, y] = [i % width, Math.floor(i / width)];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      area++;
      if (values[i] > values[peak]) peak = i;
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const j = v * width + u;
          if (visited[j] || !(values[j] > threshold)) continue;
          visited[j] = 1;
          stack.push(j);
        }
      }
    }
    regions.push({
      box: [left * scaleX, top * scaleY, (right + 1) * scaleX, (bottom + 1) * scaleY]
        .map(Math.round),
      area: Math.round(area * scaleX * scaleY), peak: values[peak],
      at: [(peak % width + 0.5) * scaleX, (Math.floor(peak / width) + 0.5) * scaleY]
        .map(Math.floor),
    });
  }
  return regions.sort((a, b) => b.peak - a.peak);
}

// Paints a canvas. `ratio` is device pixels per CSS pixel; line widths are in CSS pixels.
export function paint(canvas, ratio, { bitmap, tint, region, outline, boxes = [] }) {
  const { width, height } = canvas;
  const box = { x: 0, y: 0, width, height };
  const context = canvas.getContext('2d');
  context.clearRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.fillStyle = MISSING_IMAGE;
  if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
  if (tint) {
    context.globalAlpha = overlay.opacity;
    context.drawImage(tint, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  if (region) showRegion(context, region, box, ratio);
  if (outline && overlay.outlines) strokePath(context, outline, box, ratio, '#00E5FF');
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
    for (const [color, lineWidth] of [['rgb(0 0 0 / 70%)', 3], ['#ffffff', 1.5]]) {
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
