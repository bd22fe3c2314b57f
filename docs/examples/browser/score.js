// Scores an image by a graph of `uadjax export --include-resize`, which resizes by itself: it takes
// the pixels of the picture, and its map is as large as the picture.

const $ = (id) => document.getElementById(id);
const SIGNS = { OK: '✓', review: '?', NG: '✕' };
// Nine of plasma's colors (Smith and van der Walt 2015), between which there are lines.
const COLORS = [[13, 8, 135], [76, 2, 161], [126, 3, 168], [170, 35, 149], [204, 71, 120],
  [230, 108, 92], [248, 149, 64], [253, 197, 39], [240, 249, 33]];

let ort, graph, about, photo, heat;
let queue = Promise.resolve();  // One thing after the other, in the order they were asked for.

async function runtime() {
  if (ort) return;
  try {
    const loaded = await import('onnxruntime-web/wasm');
    // More threads need a page that is isolated by two headers: see the manual of ONNX Runtime.
    loaded.env.wasm.numThreads = 1;
    // In a worker: the page goes on answering while the graph is computed.
    loaded.env.wasm.proxy = true;
    ort = loaded;
  } catch (error) {
    throw new Error(`onnxruntime-web is not there; see README.md. (${error.message})`);
  }
}

async function openGraph(name, bytes) {
  await runtime();
  let session;
  try {
    // Errors alone are logged.
    const options = { executionProviders: ['wasm'], logSeverityLevel: 3 };
    session = await ort.InferenceSession.create(bytes, options);
  } catch (error) {
    throw new Error(`${name} cannot be opened: ${error.message}`);
  }
  const { name: input, type, shape = [] } = session.inputMetadata[0];
  if (input !== 'image' || type !== 'uint8' || !session.outputNames.includes('score')) {
    await session.release();
    throw new Error(`${name} is no graph of uadjax.`);
  }
  await graph?.session.release();
  about = undefined;  // It was the other graph's.
  graph = { name, session, batch: shape[0], height: shape[1], width: shape[2] };
}

// ONNX Runtime does not give the metadata of a graph here; the same is in the file beside it.
function openAbout(name, text) {
  try {
    about = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is no JSON: ${error.message}`);
  }
  if (!about?.thresholds) {
    about = undefined;
    throw new Error(`${name} has no thresholds; choose the .json that lies beside the graph.`);
  }
}

async function openPhoto(name, blob) {
  let bitmap;
  try {
    // The very values of the file: else a browser may follow a color profile, or multiply by alpha,
    // and the score would move. So the pixels of a PNG (8 bits) are exact; those of a JPEG differ
    // between decoders by a step or two, and its score by a little.
    const exact = { colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
    bitmap = await createImageBitmap(blob, exact);
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  }
  const { width, height } = bitmap;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  // Kept in memory: what is drawn by a graphics card may come back rounded otherwise.
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4) {
    // A canvas multiplies by alpha after all, and what it gives back was rounded.
    if (data[i + 3] !== 255) {
      throw new Error(`${name} is transparent in places; save it without alpha.`);
    }
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  photo = { name, width, height, rgb, canvas };
}

async function score() {
  const { name, width, height, rgb } = photo;
  if (height !== graph.height || width !== graph.width) {
    throw new Error(
      `${name} has ${width} × ${height} pixels, and ${graph.name} takes ${graph.width} × ` +
      `${graph.height}. Such pictures need: uadjax export --include-resize ${height}x${width}`);
  }
  const count = typeof graph.batch === 'number' ? graph.batch : 1;
  const images = new Uint8Array(count * rgb.length);
  for (let i = 0; i < count; i++) images.set(rgb, i * rgb.length);
  const begin = performance.now();
  const found = await graph.session.run(
    { image: new ort.Tensor('uint8', images, [count, height, width, 3]) });
  const ms = performance.now() - begin;
  const map = found.map.data.slice(0, height * width);
  const value = found.score.data[0];
  return { score: value, label: label(value), map, width, height, ms };
}

// As `uadjax.model.calibration.label` has it: what is not a number is NG. JSON has null for infinity.
function label(value) {
  if (!about) return '';
  const { review, image } = about.thresholds;
  if (value <= (review ?? Infinity)) return 'OK';
  return value <= (image ?? Infinity) ? 'review' : 'NG';
}

// As `uadjax.visualization.heatmap.scale` has it: the threshold is in the middle, so that half of the colors
// are defects, and the map of a good image is not blown up.
function scale(map) {
  const sorted = map.slice().sort();
  const peak = sorted.at(-1);
  const middle = about?.thresholds.pixel ?? peak;
  const usual = sorted[Math.floor(0.01 * (sorted.length - 1))];
  const span = Math.max(middle - usual, Math.abs(middle) / 2) || Math.max(peak - middle, 1e-30);
  return { low: middle - span, middle, top: Math.max(peak, middle + span), peak };
}

function color(share) {
  const place = share * (COLORS.length - 1);
  const before = Math.min(Math.floor(place), COLORS.length - 2);
  return COLORS[before].map((c, i) => c + (COLORS[before + 1][i] - c) * (place - before));
}

function tinted({ map, width, height }, { low, middle, top }) {
  const image = new ImageData(width, height);
  map.forEach((value, i) => {
    const half = value < middle
      ? 0.5 * (value - low) / (middle - low)
      : 0.5 + 0.5 * (value - middle) / (top - middle);
    const share = Math.min(Math.max(half, 0), 1);
    // Faint where all is well.
    const opaque = share < 0.5 ? 1.32 * share : share ** 0.6;
    image.data.set([...color(share), 255 * opaque], 4 * i);
  });
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

function draw() {
  const canvas = $('picture');
  const context = canvas.getContext('2d');
  Object.assign(canvas, { width: photo.width, height: photo.height });
  canvas.style.setProperty('--aspect', photo.width / photo.height);
  // Pixels are seen as such where they are large, and smoothed where they are small.
  canvas.style.imageRendering = photo.width < 400 ? 'pixelated' : 'auto';
  context.drawImage(photo.canvas, 0, 0);
  context.globalAlpha = $('heat').value / 100;
  context.drawImage(heat, 0, 0);
}

function show(result) {
  const short = (value) => (value == null ? '∞' : Number(value.toPrecision(4)).toString());
  const colors = scale(result.map);
  heat = tinted(result, colors);
  draw();
  const at = result.map.indexOf(colors.peak);
  const where = `${at % result.width}, ${Math.floor(at / result.width)}`;
  $('picture').setAttribute('aria-label', `${photo.name} under its heat map; peak at ${where}`);
  $('label').textContent = result.label ? `${SIGNS[result.label]} ${result.label}` : 'No label';
  $('label').dataset.label = result.label;
  $('score').textContent = short(result.score);
  const facts = { 'Largest map value': short(colors.peak), 'There, x and y': where };
  if (about) {
    const { image, review, pixel } = about.thresholds;
    if (review < image) facts['Review above'] = short(review);
    facts['NG above'] = short(image);
    const marked = result.map.reduce((sum, value) => sum + (value > (pixel ?? Infinity)), 0);
    facts[`Pixels above ${short(pixel)}`] = `${marked}`;
  }
  facts.Time = `${result.ms.toFixed(0)} ms`;
  $('facts').replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const row = document.createElement('div');
    for (const [tag, text] of [['dt', name], ['dd', value]]) {
      row.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
    return row;
  }));
  $('low').textContent = short(colors.low);
  $('middle').textContent = about ? `${short(colors.middle)}, threshold` : '';
  $('top').textContent = short(colors.top);
  $('result').hidden = false;
}

function tell(text, wrong = false) {
  $('told').textContent = text;
  $('told').className = wrong ? 'wrong' : '';
}

// What the chosen things are, and what comes of them.
async function update() {
  if (graph) {
    const { name, width, height } = graph;
    const model = about?.model_name ? `${about.model_name}, ` : '';
    $('graph-told').textContent = `${name}: ${model}takes ${width} × ${height} pixels`;
  }
  if (photo) {
    $('image-told').textContent = `${photo.name}: ${photo.width} × ${photo.height} pixels`;
  }
  $('graph').classList.toggle('chosen', Boolean(graph));
  $('image').classList.toggle('chosen', Boolean(photo));
  if (!graph || !photo) return tell(graph ? 'Now an image.' : 'Now a graph.');
  tell('Scoring…');
  const result = await score();
  show(result);
  const said = [result.label, `score ${$('score').textContent}`].filter(Boolean).join(', ');
  const missing = about ? '' : ' For a label, choose the .json beside the graph, too.';
  tell(`${photo.name}: ${said}.${missing}`);
  window.result = result;
}

// Does something when all before is done; a failure is told, and leaves no old result standing.
function then(what) {
  queue = queue.then(async () => {
    $('result').hidden = true;
    window.result = undefined;
    try {
      tell('Opening…');
      await what();
      await update();
    } catch (error) {
      tell(error.message, true);
    }
  });
}

const isAbout = (name) => /\.json$/i.test(name);
const isGraph = (name) => /\.onnx$/i.test(name);

// Opens whatever files there are, graphs first: what lies beside them belongs to them.
function take(files) {
  const rank = ({ name }) => (isGraph(name) ? 0 : 1);
  then(async () => {
    for (const file of [...files].sort((a, b) => rank(a) - rank(b))) {
      if (isGraph(file.name)) await openGraph(file.name, new Uint8Array(await file.arrayBuffer()));
      else if (isAbout(file.name)) openAbout(file.name, await file.text());
      else await openPhoto(file.name, file);
    }
  });
}

async function get(url) {
  const reply = await fetch(url);
  if (!reply.ok) throw new Error(`${url} is not there: ${reply.status} ${reply.statusText}`);
  return reply.blob();
}

for (const id of ['graph-file', 'image-file']) {
  $(id).addEventListener('change', ({ target }) => {
    take([...target.files]);
    target.value = '';  // The same file may be chosen again, having changed.
  });
}
for (const [name, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle('over', over);
    if (name === 'drop') take([...event.dataTransfer.files]);
  });
}
$('heat').addEventListener('input', draw);
const stops = COLORS.map((rgb) => `rgb(${rgb})`).join(', ');
$('bar').style.background = `linear-gradient(to right, ${stops})`;

const asked = new URLSearchParams(location.search);
const last = (url) => new URL(url, location.href).pathname.split('/').at(-1);
const [model, image] = [asked.get('model'), asked.get('image')];
if (model || image) {
  then(async () => {
    if (model) {
      await openGraph(last(model), new Uint8Array(await (await get(model)).arrayBuffer()));
      const beside = asked.get('about') ?? `${model}.json`;
      openAbout(last(beside), await (await get(beside)).text());
    }
    if (image) await openPhoto(last(image), await get(image));
  });
}
