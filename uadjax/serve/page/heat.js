// A photograph, the map laid over it in color, outlines and boxes of what is marked.

import { contour } from './contour.js';
import { make } from './dom.js';
import { over } from './state.js';

// Every sixteenth color of plasma, as in the report.
const STOPS = ('0c07863104964c02a16500a77e03a79511a1a92395bb3586cb4777d95969e56c5bf0804df89540'
  + 'fcac32fdc427f8df24eff821').match(/../g).map((byte) => parseInt(byte, 16));

function color(share) {
  const at = Math.min(15.999, Math.max(0, 16 * share));
  const [i, part] = [3 * Math.floor(at), at % 1];
  return [0, 1, 2].map((c) => STOPS[i + c] * (1 - part) + STOPS[i + 3 + c] * part);
}

// A picture no longer than `most`, or as large as it is; where the browser knows its format.
export async function opened(blob, most, exact = false) {
  const how = exact ? { colorSpaceConversion: 'none' } : {};
  const whole = await createImageBitmap(blob, how);
  const share = most / Math.max(whole.width, whole.height);
  if (share >= 1) return whole;
  const small = await createImageBitmap(whole, {
    resizeWidth: Math.max(1, Math.round(share * whole.width)),
    resizeHeight: Math.max(1, Math.round(share * whole.height)),
    resizeQuality: 'medium',
  });
  whole.close();
  return small;
}

// The map of a result in gray levels, from `low` to `high`.
export async function levels({ map, low, high }, most) {
  const bitmap = await opened(map, most, true);
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

export const valueOf = ({ low, high }, level) => low + level / 255 * (high - low);

// What a level must exceed to be marked; at least so low that the outside is not.
function limitOf({ low, high }, threshold) {
  if (high > low) return Math.max(-0.5, 255 * (threshold - low) / (high - low));
  return low > threshold ? -0.5 : 255;
}

// Colors of a scale whose middle is the threshold; the hotter the more opaque, as in pictures.
export function tinted(heat, threshold) {
  const { gray, width, height, low, high } = heat;
  const tally = new Uint32Array(256);
  for (const level of gray) tally[level]++;
  let [usual, seen] = [0, 0];
  while (usual < 255 && (seen += tally[usual]) < gray.length / 100) usual++;
  const middle = Number.isFinite(threshold) ? threshold : high;
  const reach = Math.max(middle - valueOf(heat, usual), Math.abs(middle) / 2, 1e-30);
  const top = Math.max(high, middle + reach);
  const inks = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(inks.buffer);
  for (let level = 0; level < 256; level++) {
    const off = valueOf(heat, level) - middle;
    const share = Math.min(1, Math.max(0, 0.5 + 0.5 * off / (off < 0 ? reach : top - middle)));
    bytes.set(color(share), 4 * level);
    bytes[4 * level + 3] = 255 * (share < 0.5 ? 1.32 * share : share ** 0.6);
  }
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  for (let i = 0; i < gray.length; i++) out[i] = inks[gray[i]];
  const canvas = make('canvas', { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

// Closed outlines of what exceeds a threshold, as a path over the unit square.
export function outlines(heat, threshold) {
  return contour(heat, limitOf(heat, threshold));
}

// What is marked and touches, at a corner at least, by its peak; in pixels of a size.
export function regions(heat, threshold, [tall, wide]) {
  const { gray, width, height } = heat;
  const level = limitOf(heat, threshold);
  const [sx, sy] = [wide / width, tall / height];
  const seen = new Uint8Array(gray.length);
  const found = [];
  for (let start = 0; start < gray.length; start++) {
    if (seen[start] || gray[start] <= level) continue;
    const stack = [start];
    seen[start] = 1;
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
          if (seen[j] || gray[j] <= level) continue;
          seen[j] = 1;
          stack.push(j);
        }
      }
    }
    found.push({
      box: [left * sx, top * sy, (right + 1) * sx, (bottom + 1) * sy].map(Math.round),
      area: Math.round(area * sx * sy), peak: valueOf(heat, gray[peak]),
      at: [(peak % width + 0.5) * sx, (Math.floor(peak / width) + 0.5) * sy].map(Math.floor),
    });
  }
  return found.sort((a, b) => b.peak - a.peak);
}

const CASING = 'rgb(0 0 0 / 70%)';

// Fills a canvas; lines are as wide as a pixel of the screen asks for.
export function paint(canvas, ratio, { photo, tint, outline, boxes = [] }) {
  const { width, height } = canvas;
  const context = canvas.getContext('2d');
  context.clearRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.fillStyle = '#808890';  // Where the browser cannot show the photograph.
  if (photo) context.drawImage(photo, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
  if (tint) {
    context.globalAlpha = over.opacity;
    context.drawImage(tint, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  context.lineJoin = 'round';
  const strokes = [[CASING, 3.5], ['#00E5FF', 1.75]];
  if (outline && over.marked) {
    const path = new Path2D();
    path.addPath(outline, new DOMMatrix([width, 0, 0, height, 0, 0]));
    for (const [stroke, wide] of strokes) {
      [context.strokeStyle, context.lineWidth] = [stroke, wide * ratio];
      context.stroke(path);
    }
  }
  drawBoxes(context, boxes, ratio);
}

// A little larger than what they are around; names that would cover one before are left out.
function drawBoxes(context, boxes, ratio) {
  const { width, height } = context.canvas;
  const air = 4 * ratio;
  const taken = [];
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  const placed = boxes.map(({ box: [left, top, right, bottom], name }) => ({
    name, x: left * width - air, y: top * height - air,
    w: (right - left) * width + 2 * air, h: (bottom - top) * height + 2 * air,
  }));
  for (const { x, y, w, h } of placed) {
    for (const [stroke, wide] of [[CASING, 3], ['#ffffff', 1.5]]) {
      [context.strokeStyle, context.lineWidth] = [stroke, wide * ratio];
      context.strokeRect(x, y, w, h);
    }
  }
  for (const { name, x, y, h } of placed) {
    const [long, tall] = [context.measureText(name).width + 8 * ratio, 17 * ratio];
    const tx = Math.max(0, Math.min(x, width - long));
    const ty = y > tall ? y - tall : Math.min(y + h, height - tall);
    if (taken.some(([u, v, l]) => tx < u + l && u < tx + long && Math.abs(ty - v) < tall)) continue;
    taken.push([tx, ty, long]);
    context.fillStyle = 'rgb(0 0 0 / 78%)';
    context.fillRect(tx, ty, long, tall);
    context.fillStyle = '#ffffff';
    context.fillText(name, tx + 4 * ratio, ty + 13 * ratio);
  }
}
