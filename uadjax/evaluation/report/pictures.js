// A photo, the map laid over it in color, and outlines of what is marked and what is true.

const colors = read('colors').match(/../g).map((byte) => parseInt(byte, 16));
const over = { opacity: 0.65, level: 127.5, marked: true, truth: true };

async function opened(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

function pixels(image) {
  const canvas = make('canvas', { width: image.width, height: image.height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const gray = Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
  return { gray, width: image.width, height: image.height };
}

// The hotter the more opaque: what is normal stays visible. Half of the levels are not marked.
function tinted({ gray, width, height }) {
  const canvas = make('canvas', { width, height });
  const image = new ImageData(width, height);
  gray.forEach((level, i) => {
    image.data.set(colors.slice(3 * level, 3 * level + 3), 4 * i);
    image.data[4 * i + 3] = level;
  });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

const loading = new Map();
function load(picture) {
  if (!loading.has(picture)) loading.set(picture, loaded(picture));
  return loading.get(picture);
}

async function loaded(picture) {
  const [photo, heat, truth] = await Promise.all(
    [picture.photo, picture.heat, picture.truth].map((uri) => uri && opened(uri)));
  const levels = pixels(heat);
  const outlines = new Map();
  return {
    photo,
    tint: tinted(levels),
    truth: truth && contour(pixels(truth), 127.5),
    marked() {
      if (!outlines.has(over.level)) outlines.clear();
      if (!outlines.size) outlines.set(over.level, contour(levels, over.level));
      return outlines.get(over.level);
    },
  };
}

// Draws into a box of a canvas, lines as wide as a pixel of the screen asks for.
function paint(context, picture, ready, { x, y, width, height }, ratio) {
  context.globalAlpha = 1;
  context.drawImage(ready.photo, x, y, width, height);
  context.globalAlpha = over.opacity;
  context.drawImage(ready.tint, x, y, width, height);
  context.globalAlpha = 1;
  const [left, top, right, bottom] = picture.seen;
  const outside = new Path2D();
  outside.rect(x, y, width, height);
  outside.rect(x + left * width, y + top * height, (right - left) * width, (bottom - top) * height);
  context.fillStyle = 'rgb(128 128 128 / 55%)';  // What the network did not see.
  context.fill(outside, 'evenodd');
  const line = (unit, color, dash) => {
    const path = new Path2D();
    path.addPath(unit, new DOMMatrix([width, 0, 0, height, x, y]));
    context.lineJoin = 'round';
    for (const [stroke, wide, dashes] of [['rgb(0 0 0 / 70%)', 3.5, []], [color, 1.75, dash]]) {
      context.setLineDash(dashes.map((length) => length * ratio));
      context.strokeStyle = stroke;
      context.lineWidth = wide * ratio;
      context.stroke(path);
    }
  };
  if (over.marked) line(ready.marked(), '#00E5FF', []);
  if (over.truth && ready.truth) line(ready.truth, '#FFFFFF', [5, 4]);
}
