// Scores an image with a graph of `uadjax export --include-resize`. Resizing is part of the graph:
// its input is the image at its original size, and the anomaly map has the same size.

import { colorize, colorScale, makeColorBar } from './heatmap.js';

const find = (id) => document.getElementById(id);
const SYMBOLS = { OK: '✓', review: '?', NG: '✕' };

let ort, graph, metadata, image, heatmap;
let queue = Promise.resolve();  // Actions run one after another, in the order they were requested.

async function loadRuntime() {
  if (ort) return;
  try {
    const module = await import('onnxruntime-web/wasm');
    // Several threads require cross-origin isolation: see the manual of ONNX Runtime Web.
    module.env.wasm.numThreads = 1;
    // Inference runs in a worker, so that the page stays responsive.
    module.env.wasm.proxy = true;
    ort = module;
  } catch (error) {
    throw new Error(`onnxruntime-web is not installed; see README.md. (${error.message})`);
  }
}

async function openGraph(name, bytes) {
  await loadRuntime();
  let session;
  try {
    // Level 3 logs errors only.
    const options = { executionProviders: ['wasm'], logSeverityLevel: 3 };
    session = await ort.InferenceSession.create(bytes, options);
  } catch (error) {
    throw new Error(`${name} cannot be opened: ${error.message}`);
  }
  const { name: inputName, type, shape = [] } = session.inputMetadata[0];
  if (inputName !== 'image' || type !== 'uint8' || !session.outputNames.includes('score')) {
    await session.release();
    throw new Error(`${name} is not a graph exported by uadjax.`);
  }
  await graph?.session.release();
  metadata = undefined;  // It belongs to the previous graph.
  graph = { name, session, batch: shape[0], height: shape[1], width: shape[2] };
}

// ONNX Runtime Web does not expose the metadata of a graph; the file beside it has the same.
function openMetadata(name, text) {
  try {
    metadata = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is not valid JSON: ${error.message}`);
  }
  if (!metadata?.thresholds) {
    metadata = undefined;
    throw new Error(`${name} has no thresholds; choose the .json file beside the graph.`);
  }
}

async function openImage(name, blob) {
  let bitmap;
  try {
    // The exact values of the file: otherwise a browser may apply a color profile or multiply by
    // alpha, which changes the score. The pixels of an 8-bit PNG are exact; those of a JPEG differ
    // between decoders by a level or two, and its score by a little.
    const exact = { colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
    bitmap = await createImageBitmap(blob, exact);
  } catch {
    throw new Error(`${name} is not an image that this browser can read.`);
  }
  const { width, height } = bitmap;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  // Without willReadFrequently the canvas may live on a GPU, which may round values differently.
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4) {
    // A canvas stores colors multiplied by alpha, so transparent pixels come back rounded.
    if (data[i + 3] !== 255) {
      throw new Error(`${name} has transparent pixels; save it without alpha.`);
    }
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  image = { name, width, height, rgb, canvas };
}

async function score() {
  const { name, width, height, rgb } = image;
  if (height !== graph.height || width !== graph.width) {
    throw new Error(
      `${name} has ${width} × ${height} pixels, but ${graph.name} requires ${graph.width} × ` +
      `${graph.height}. Export a graph with --include-resize ${height}x${width}`);
  }
  const batchSize = typeof graph.batch === 'number' ? graph.batch : 1;
  const batch = new Uint8Array(batchSize * rgb.length);
  for (let i = 0; i < batchSize; i++) batch.set(rgb, i * rgb.length);
  const start = performance.now();
  const outputs = await graph.session.run(
    { image: new ort.Tensor('uint8', batch, [batchSize, height, width, 3]) });
  const milliseconds = performance.now() - start;
  const map = outputs.map.data.slice(0, height * width);
  const value = outputs.score.data[0];
  return { score: value, label: labelScore(value), map, width, height, milliseconds };
}

// The same rule as `uadjax.model.calibration.label`: NaN is NG. JSON has null for infinity.
function labelScore(value) {
  if (!metadata) return '';
  const { image_threshold: imageThreshold, review_threshold: reviewThreshold } =
    metadata.thresholds;
  if (value <= (reviewThreshold ?? Infinity)) return 'OK';
  return value <= (imageThreshold ?? Infinity) ? 'review' : 'NG';
}

// Without thresholds the colors run from the lowest value of the image to the highest.
function scaleOf(map) {
  if (!metadata) {
    const [low, high] = [Math.min, Math.max].map((extreme) => map.reduce((a, b) => extreme(a, b)));
    return { low, high };
  }
  const { pixel_threshold: pixelThreshold, image_threshold: imageThreshold } = metadata.thresholds;
  return colorScale(pixelThreshold ?? Infinity, imageThreshold ?? Infinity);
}

function paint() {
  const canvas = find('canvas');
  const context = canvas.getContext('2d');
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.style.setProperty('--aspect', image.width / image.height);
  // Small images are enlarged with sharp pixels; large ones are smoothed.
  canvas.style.imageRendering = image.width < 400 ? 'pixelated' : 'auto';
  context.drawImage(image.canvas, 0, 0);
  context.globalAlpha = find('opacity').value / 100;
  context.drawImage(heatmap, 0, 0);
}

function showResult(result) {
  const format = (value) =>
    String(Number((value ?? Infinity).toPrecision(4))).replace('Infinity', '∞');
  const { map: values, width, height } = result;
  const scale = scaleOf(values);
  heatmap = colorize({ values, width, height }, scale);
  paint();
  const peak = values.reduce((a, b) => Math.max(a, b));
  const peakIndex = values.indexOf(peak);
  const peakPosition = `${peakIndex % result.width}, ${Math.floor(peakIndex / result.width)}`;
  find('canvas').setAttribute('aria-label',
    `${image.name} with its heatmap; peak at ${peakPosition}`);
  find('label').textContent =
    result.label ? `${SYMBOLS[result.label]} ${result.label}` : 'No label';
  find('label').dataset.label = result.label;
  find('score').textContent = format(result.score);
  const details = { 'Peak of the anomaly map': format(peak),
    'Peak position (x, y)': peakPosition };
  if (metadata) {
    const { image_threshold: imageThreshold, review_threshold: reviewThreshold,
      pixel_threshold: pixelThreshold } = metadata.thresholds;
    details['Image threshold'] = format(imageThreshold);
    details['Review threshold'] = format(reviewThreshold);
    details['Pixel threshold'] = format(pixelThreshold);
    details['Pixels above threshold'] =
      `${result.map.reduce((sum, value) => sum + (value > (pixelThreshold ?? Infinity)), 0)}`;
  }
  details.Time = `${result.milliseconds.toFixed(0)} ms`;
  find('details').replaceChildren(...Object.entries(details).map(([name, value]) => {
    const row = document.createElement('div');
    for (const [tag, text] of [['dt', name], ['dd', value]]) {
      row.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
    return row;
  }));
  find('color-bar').replaceChildren(
    makeColorBar(scale, format, metadata ? undefined : 'Lowest value'));
  find('result').hidden = false;
}

function setStatus(text, isError = false) {
  find('status').textContent = text;
  find('status').className = isError ? 'error' : '';
}

// Shows which files are open, and scores the image once both are.
async function update() {
  if (graph) {
    const { name, width, height } = graph;
    const model = metadata?.model_name ? `${metadata.model_name}, ` : '';
    find('graph-status').textContent = `${name}: ${model}input ${width} × ${height} pixels`;
  }
  if (image) {
    find('image-status').textContent = `${image.name}: ${image.width} × ${image.height} pixels`;
  }
  find('graph').classList.toggle('chosen', Boolean(graph));
  find('image').classList.toggle('chosen', Boolean(image));
  if (!graph || !image) return setStatus(graph ? 'Now choose an image.' : 'Now choose a graph.');
  setStatus('Scoring…');
  const result = await score();
  showResult(result);
  const summary =
    [result.label, `score ${find('score').textContent}`].filter(Boolean).join(', ');
  const hint = metadata ? '' : ' For a label, choose the .json file beside the graph, too.';
  setStatus(`${image.name}: ${summary}.${hint}`);
  window.result = result;
}

// Runs an action after all earlier ones. A failure is shown and leaves no outdated result.
function enqueue(action) {
  queue = queue.then(async () => {
    find('result').hidden = true;
    window.result = undefined;
    try {
      setStatus('Opening…');
      await action();
      await update();
    } catch (error) {
      setStatus(error.message, true);
    }
  });
}

const isMetadata = (name) => /\.json$/i.test(name);
const isGraph = (name) => /\.onnx$/i.test(name);

// Opens files, graphs first: opening a graph discards the metadata of the previous one.
function openFiles(files) {
  const rank = ({ name }) => (isGraph(name) ? 0 : 1);
  enqueue(async () => {
    for (const file of [...files].sort((a, b) => rank(a) - rank(b))) {
      if (isGraph(file.name)) await openGraph(file.name, new Uint8Array(await file.arrayBuffer()));
      else if (isMetadata(file.name)) openMetadata(file.name, await file.text());
      else await openImage(file.name, file);
    }
  });
}

async function download(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`${url} cannot be read: ${response.status} ${response.statusText}`);
  }
  return response.blob();
}

for (const id of ['graph-file', 'image-file']) {
  find(id).addEventListener('change', ({ target }) => {
    openFiles([...target.files]);
    target.value = '';  // Else choosing the same file again, after it changed, fires no event.
  });
}
for (const [type, isDragging] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle('dragging', isDragging);
    if (type === 'drop') openFiles([...event.dataTransfer.files]);
  });
}
find('opacity').addEventListener('input', paint);

const query = new URLSearchParams(location.search);
const fileName = (url) => new URL(url, location.href).pathname.split('/').at(-1);
const [modelUrl, imageUrl] = [query.get('model'), query.get('image')];
if (modelUrl || imageUrl) {
  enqueue(async () => {
    if (modelUrl) {
      const bytes = new Uint8Array(await (await download(modelUrl)).arrayBuffer());
      await openGraph(fileName(modelUrl), bytes);
      const metadataUrl = query.get('metadata') ?? `${modelUrl}.json`;
      openMetadata(fileName(metadataUrl), await (await download(metadataUrl)).text());
    }
    if (imageUrl) await openImage(fileName(imageUrl), await download(imageUrl));
  });
}
