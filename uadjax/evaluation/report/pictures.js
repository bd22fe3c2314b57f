// Painting a picture: an image with its heatmap, anomalous regions and ground truth.

const colors = read('colors').match(/../g).map((byte) => parseInt(byte, 16));
const overlay = { opacity: 0.65, pixelLevel: 127.5, outlines: true, truth: true };

async function decodeImage(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

function readGray(image) {
  const canvas = make('canvas', { width: image.width, height: image.height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const gray = Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
  return { gray, width: image.width, height: image.height };
}

// Larger values are more opaque, so that normal regions stay visible. Half of the levels lie below
// the pixel threshold, see `uadjax.evaluation.report.gallery.quantize_map`.
function colorize({ gray, width, height }) {
  const canvas = make('canvas', { width, height });
  const image = new ImageData(width, height);
  gray.forEach((level, i) => {
    image.data.set(colors.slice(3 * level, 3 * level + 3), 4 * i);
    image.data[4 * i + 3] = level;
  });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

const layersByPicture = new Map();  // Promises, so that each picture is decoded once.
function loadLayers(picture) {
  if (!layersByPicture.has(picture)) layersByPicture.set(picture, decodeLayers(picture));
  return layersByPicture.get(picture);
}

async function decodeLayers(picture) {
  const [photo, heatmap, truth] = await Promise.all(
    [picture.photo, picture.heatmap, picture.truth].map((uri) => uri && decodeImage(uri)));
  const levels = readGray(heatmap);
  const outlines = new Map();  // By level; holds the current level only.
  return {
    photo,
    tint: colorize(levels),
    truth: truth && contour(readGray(truth), 127.5),
    outline() {
      const { pixelLevel } = overlay;
      if (!outlines.has(pixelLevel)) outlines.clear();
      if (!outlines.size) outlines.set(pixelLevel, contour(levels, pixelLevel));
      return outlines.get(pixelLevel);
    },
  };
}

// Paints into a box of a canvas. `ratio` is device pixels per CSS pixel.
function paintPicture(context, picture, layers, { x, y, width, height }, ratio) {
  context.globalAlpha = 1;
  context.drawImage(layers.photo, x, y, width, height);
  context.globalAlpha = overlay.opacity;
  context.drawImage(layers.tint, x, y, width, height);
  context.globalAlpha = 1;
  const [left, top, right, bottom] = picture.visible_box;
  const outside = new Path2D();
  outside.rect(x, y, width, height);
  outside.rect(x + left * width, y + top * height, (right - left) * width, (bottom - top) * height);
  context.fillStyle = 'rgb(128 128 128 / 55%)';  // Pixels that are not part of the model's input.
  context.fill(outside, 'evenodd');
  const drawPath = (unitPath, color, dashes) => {
    const path = new Path2D();
    path.addPath(unitPath, new DOMMatrix([width, 0, 0, height, x, y]));
    context.lineJoin = 'round';
    const strokes = [['rgb(0 0 0 / 70%)', 3.5, []], [color, 1.75, dashes]];
    for (const [strokeColor, lineWidth, strokeDashes] of strokes) {
      context.setLineDash(strokeDashes.map((length) => length * ratio));
      context.strokeStyle = strokeColor;
      context.lineWidth = lineWidth * ratio;
      context.stroke(path);
    }
  };
  if (overlay.outlines) drawPath(layers.outline(), '#00E5FF', []);
  if (overlay.truth && layers.truth) drawPath(layers.truth, '#FFFFFF', [5, 4]);
}
