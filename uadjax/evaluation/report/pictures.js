// Painting a picture: an image with its anomaly map, anomalous regions and ground truth.

const overlay =
  { opacity: OPACITY, pixelThreshold: calibratedPixelThreshold, outlines: true, truth: true };

// Colors follow the pixel threshold; the upper end is that of the calibrated image threshold.
const currentScale = () => colorScale(overlay.pixelThreshold, calibrated.imageThreshold);

async function decodeImage(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

const layersByPicture = new Map();  // Promises, so that each picture is decoded once.
function loadLayers(picture) {
  if (!layersByPicture.has(picture)) layersByPicture.set(picture, decodeLayers(picture));
  return layersByPicture.get(picture);
}

async function decodeLayers(picture) {
  const [photo, heatmap, truth, region] = await Promise.all(
    ['photo', 'heatmap', 'truth', 'region'].map((key) =>
      picture[key] && decodeImage(picture[key])));
  const map = readMap(heatmap, picture.low, picture.high);
  let painted = {};  // At the current thresholds only.
  return {
    photo,
    truth: truth && contour(readMap(truth, 0, 1), 0.5),
    region: region && contour(readMap(region, 0, 1), 0.5),
    paint() {
      const { pixelThreshold } = overlay;
      const level =
        regionThreshold(labelOf(picture), picture.high, { ...thresholds, pixelThreshold });
      if (painted.pixelThreshold !== pixelThreshold || painted.level !== level) {
        painted = { pixelThreshold, level, tint: colorize(map, currentScale()),
          outline: contour(map, level) };
      }
      return painted;
    },
  };
}

// Dims the pixels that are not part of the input of the model.
function dimOutside(context, [left, top, right, bottom], { x, y, width, height }) {
  const outside = new Path2D();
  outside.rect(x, y, width, height);
  outside.rect(x + left * width, y + top * height, (right - left) * width, (bottom - top) * height);
  context.fillStyle = SHADE;
  context.fill(outside, 'evenodd');
}

// Paints into a box of a canvas. `ratio` is device pixels per CSS pixel.
function paintPicture(context, picture, layers, box, ratio) {
  const { x, y, width, height } = box;
  const { tint, outline } = layers.paint();
  context.globalAlpha = 1;
  context.drawImage(layers.photo, x, y, width, height);
  context.globalAlpha = overlay.opacity;
  context.drawImage(tint, x, y, width, height);
  context.globalAlpha = 1;
  if (layers.region) showRegion(context, layers.region, box, ratio);
  else dimOutside(context, picture.visible_box, box);
  if (overlay.outlines) strokePath(context, outline, box, ratio, '#00E5FF');
  if (overlay.truth && layers.truth) {
    strokePath(context, layers.truth, box, ratio, '#FFFFFF', [5, 4]);
  }
}
