// Colors of anomaly maps, by the same rule as `uadjax.visualization.heatmap`: transparent up to the
// pixel threshold, and colored from there to an upper end that follows from the thresholds.

export const OPACITY = 0.75;  // Of the highest values.
const MIN_ALPHA = 0.6;  // Opacity just above the threshold, as a share of that of the highest.
// Every sixteenth color of matplotlib's plasma but the darkest.
const COLOR_STOPS = '9511a1a92395bb3586cb4777d95969e56c5bf0804df89540fcac32fdc427f8df24eff821'
  .match(/.{6}/g).map((color) => color.match(/../g).map((byte) => parseInt(byte, 16)));

// 256 colors as red, green, blue and alpha.
const PALETTE = new Uint8ClampedArray(4 * 256);
for (let level = 0; level < 256; level++) {
  const position = level / 255 * (COLOR_STOPS.length - 1);
  const i = Math.min(Math.floor(position), COLOR_STOPS.length - 2);
  const [from, to, weight] = [COLOR_STOPS[i], COLOR_STOPS[i + 1], position - i];
  PALETTE.set(from.map((channel, c) => channel + (to[c] - channel) * weight), 4 * level);
  PALETTE[4 * level + 3] = 255 * (MIN_ALPHA + (1 - MIN_ALPHA) * level / 255);
}

// Returns the values of the first and the last color. A threshold may be infinite.
export function colorScale(pixelThreshold, imageThreshold) {
  const sizes = [pixelThreshold, imageThreshold].filter(Number.isFinite).map(Math.abs);
  return { low: pixelThreshold, high: pixelThreshold + (0.5 * Math.max(0, ...sizes) || 1) };
}

// Returns the first index of the color of a value in the palette; -1 for a transparent one.
function paletteIndex({ low, high }, value) {
  if (!(value > low)) return -1;
  const share = high > low ? (value - low) / (high - low) : 1;
  // The share of an infinite value may be NaN.
  return share < 1 ? 4 * Math.floor(255 * share + 0.5) : 4 * 255;
}

// Returns red, green, blue and alpha of a value, from 0 to 255.
export function colorAt(scale, value) {
  const index = paletteIndex(scale, value);
  return index < 0 ? [0, 0, 0, 0] : PALETTE.slice(index, index + 4);
}

// Returns a canvas with the colors of a map.
export function colorize({ values, width, height }, scale) {
  const image = new ImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    const index = paletteIndex(scale, values[i]);
    if (index >= 0) image.data.set(PALETTE.subarray(index, index + 4), 4 * i);
  }
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

// Reads a decoded gray image: levels 0 to 255 stand for values from `low` to `high`.
export function readMap(image, low, high) {
  const { width, height } = image;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const values = Float32Array.from({ length: width * height },
    (_, i) => (data[4 * i] === 255 ? high : low + data[4 * i] / 255 * (high - low)));
  return { values, width, height };
}

// Returns a color bar between the pixel threshold and the upper end, which label it.
export function makeColorBar(scale, format, name = 'Pixel threshold') {
  const bar = Object.assign(document.createElement('span'), { className: 'color-bar' });
  const gradient = Object.assign(document.createElement('span'), { className: 'gradient' });
  const stops = COLOR_STOPS.map((color) => `rgb(${color})`);
  gradient.style.background = `linear-gradient(to right, ${stops})`;
  bar.append(`${name} ${format(scale.low)}`.trim(), gradient, format(scale.high));
  return bar;
}
