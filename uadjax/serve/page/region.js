// Drawing a region of interest on an image: rectangles and polygons, saved as a PNG in which they
// are white, with as many pixels as the image.

import { download } from './dom.js';
import { configure, find, SHADE } from './elements.js';
import { decodeImage, MISSING_IMAGE } from './picture.js';

const MAX_IMAGE_SIDE = 1600;  // Pixels.
const CLOSE_DISTANCE = 10;  // CSS pixels to a corner within which a click ends the polygon.
const [dialog, canvas, holder] = [find('region'), find('region-canvas'), find('region-holder')];
let image = null;  // { name, bitmap, width, height }
let shapes = [];  // Lists of corners [x, y], as shares of width and height.
let corners = [];  // Of the shape that is not complete yet.
let pointer = null;  // Position of the pointer while it draws.

export async function openDrawing(name, file, [height, width]) {
  const bitmap = await decodeImage(file, MAX_IMAGE_SIDE).catch(() => null);
  image = { name, bitmap, width, height };
  [shapes, corners, pointer] = [[], [], null];
  find('region-name').textContent = name;
  dialog.showModal();
  update();
}

const isPolygon = () => find('region-tool').value === 'polygon';

function positionOf({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height]
    .map((share) => Math.min(1, Math.max(0, share)));
}

function isNear([x, y], [otherX, otherY]) {
  const { clientWidth, clientHeight } = canvas;
  return Math.hypot((x - otherX) * clientWidth, (y - otherY) * clientHeight) <= CLOSE_DISTANCE;
}

const rectangle = ([x, y], [otherX, otherY]) =>
  [[x, y], [otherX, y], [otherX, otherY], [x, otherY]];

function addCorner(position) {
  const [first, last] = [corners[0], corners.at(-1)];
  const isEnd = corners.length > 2 && (isNear(position, first) || isNear(position, last));
  if (isEnd) complete(corners);
  else if (!last || !isNear(position, last)) corners.push(position);
}

function complete(shape) {
  shapes.push(shape);
  dropCorners();
}

function dropCorners() {
  [corners, pointer] = [[], null];
}

function undo() {
  if (corners.length) corners.pop();
  else shapes.pop();
  update();
}

function clear() {
  [shapes, corners, pointer] = [[], [], null];
  update();
}

// Returns the outline of a shape on a canvas of the given size.
function pathOf(shape, width, height) {
  const path = new Path2D();
  for (const [x, y] of shape) path.lineTo(x * width, y * height);
  return path;
}

function fillShapes(context, { width, height }) {
  for (const shape of shapes) context.fill(pathOf(shape, width, height));
}

function save() {
  const { name, width, height } = image;
  const mask = Object.assign(document.createElement('canvas'), { width, height });
  const context = mask.getContext('2d');
  context.fillRect(0, 0, width, height);
  context.fillStyle = '#ffffff';
  fillShapes(context, mask);
  const stem = name.replace(/^.*\//, '').replace(/\.[^.]*$/, '');
  mask.toBlob((blob) => download(`${stem}_roi.png`, blob, 'image/png'));
}

function update() {
  const isEmpty = !shapes.length;
  find('region-save').disabled = isEmpty;
  find('region-undo').disabled = find('region-clear').disabled = isEmpty && !corners.length;
  paint();
}

function paint() {
  if (!dialog.open) return;
  const ratio = window.devicePixelRatio;
  const scale = Math.min(holder.clientWidth / image.width, holder.clientHeight / image.height);
  if (!(scale > 0)) return;
  const size = { width: image.width * scale, height: image.height * scale };
  [canvas.style.width, canvas.style.height] = [`${size.width}px`, `${size.height}px`];
  const [width, height] = [size.width, size.height].map((side) => Math.round(side * ratio));
  configure(canvas, { width, height });
  const context = canvas.getContext('2d');
  context.fillStyle = MISSING_IMAGE;
  if (image.bitmap) context.drawImage(image.bitmap, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
  if (shapes.length) context.drawImage(shadeOutside(width, height), 0, 0);
  [context.lineJoin, context.lineWidth, context.strokeStyle] = ['round', 1.5 * ratio, '#ffffff'];
  for (const shape of shapes) {
    const path = pathOf(shape, width, height);
    path.closePath();
    context.stroke(path);
  }
  context.strokeStyle = '#00E5FF';
  const open = pointer && corners.length
    ? (isPolygon() ? [...corners, pointer] : [...rectangle(corners[0], pointer), corners[0]])
    : corners;
  context.stroke(pathOf(open, width, height));
  context.fillStyle = '#00E5FF';
  for (const [x, y] of isPolygon() ? corners : []) {
    context.fillRect(x * width - 3 * ratio, y * height - 3 * ratio, 6 * ratio, 6 * ratio);
  }
}

// Returns a canvas that is dark outside of all shapes.
function shadeOutside(width, height) {
  const shade = Object.assign(document.createElement('canvas'), { width, height });
  const context = shade.getContext('2d');
  context.fillStyle = SHADE;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = 'destination-out';
  context.fillStyle = '#000000';
  fillShapes(context, shade);
  return shade;
}

export function startDrawing() {
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    const position = positionOf(event);
    if (isPolygon()) addCorner(position);
    else corners = [position];
    pointer = position;
    update();
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!corners.length) return;
    pointer = positionOf(event);
    paint();
  });
  canvas.addEventListener('pointerup', (event) => {
    if (isPolygon() || !corners.length) return;
    const [[start], end] = [corners, positionOf(event)];
    if (isNear(start, end)) dropCorners();  // A click is no rectangle.
    else complete(rectangle(start, end));
    update();
  });
  dialog.addEventListener('keydown', (event) => {
    if (event.key !== 'z' || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    undo();
  });
  find('region-tool').addEventListener('change', () => {
    dropCorners();
    update();
  });
  find('region-undo').addEventListener('click', undo);
  find('region-clear').addEventListener('click', clear);
  find('region-save').addEventListener('click', save);
  find('region-close').addEventListener('click', () => dialog.close());
  // Escape drops a shape that is not complete; only without one it closes the dialog.
  dialog.addEventListener('cancel', (event) => {
    if (!corners.length) return;
    event.preventDefault();
    dropCorners();
    update();
  });
  dialog.addEventListener('close', () => {
    image.bitmap?.close();
    image = null;
  });
  new ResizeObserver(paint).observe(holder);
}
