// Entry point: the request queue, progress and announcements, and the page's controls.

import { quoteForShell, startCopy } from './commands.js';
import { toCsv } from './csv.js';
import { download, plural } from './dom.js';
import { find, make } from './elements.js';
import { removeItem, startGrid } from './grid.js';
import { startGrouping } from './grouping.js';
import { startPanels } from './panel.js';
import { readRegion } from './picture.js';
import { startDrawing } from './region.js';
import { listModels, scoreImage, token } from './service.js';
import { countLabels, emit, isDone, items, labelsOf, models, on, selectedModels, selectModels,
  setModels, summarize, tabulate } from './state.js';
import { startUpload } from './upload.js';
import { enlarge, startZoom } from './zoom.js';

const MAX_REQUESTS = 4;
const ANNOUNCEMENT_INTERVAL = 3000;  // Milliseconds.
let queue = [];  // { item, name } of requests that are not sent yet.
let [numRunning, abortController] = [0, new AbortController()];

function enqueue(item) {
  for (const name of selectedModels) {
    if (item.requested.has(name)) continue;
    item.requested.add(name);
    queue.push({ item, name });
  }
}

function sendRequests() {
  while (numRunning < MAX_REQUESTS && queue.length) {
    const { item, name } = queue.shift();
    if (selectedModels.includes(name)) sendRequest(item, name);
    else item.requested.delete(name);  // The model has been deselected meanwhile.
  }
}

async function sendRequest(item, name) {
  const { signal } = abortController;
  numRunning++;
  try {
    item.results.set(name, await scoreImage(item.file, name, signal, onBusy));
  } catch (error) {
    if (!signal.aborted) item.errors.set(name, error.message);
  }
  if (signal.aborted) return;
  numRunning--;
  emit('items');
  sendRequests();
}

function add({ images, numSkipped }) {
  for (const { name, file } of images) {
    items.push({ name, file, results: new Map(), errors: new Map(), requested: new Set() });
  }
  find('skipped').hidden = images.length > 0 && !numSkipped;
  find('skipped').textContent = numSkipped
    ? `Skipped ${plural(numSkipped, 'file')} of the folder that ${numSkipped === 1
      ? 'is not an image' : 'are not images'}.` : 'No images found.';
  items.forEach(enqueue);
  emit('items');
  sendRequests();
}

function clear() {
  abortController.abort();
  [abortController, queue, numRunning, numBusy] = [new AbortController(), [], 0, 0];
  items.forEach(removeItem);
  items.length = 0;
  showNotice('');
  find('skipped').hidden = true;
  emit('items');
  find('files').focus();
}

function retry() {
  for (const item of items) {
    for (const name of item.errors.keys()) item.requested.delete(name);
    item.errors.clear();
    enqueue(item);
  }
  emit('items');
  sendRequests();
}

// The reason is shown as long as at least one request waits for the service.
let numBusy = 0;
function onBusy(reason) {
  numBusy += reason ? 1 : -1;
  if (reason || !numBusy) showNotice(reason);
}

function showNotice(text) {
  find('notice').hidden = !text;
  if (find('notice').textContent !== text) find('notice').textContent = text;
}

let [announcement, timer] = ['', 0];
function announce(text, immediately) {
  announcement = text;
  if (immediately) {
    clearTimeout(timer);
    timer = 0;
    find('announcement').textContent = announcement;
  } else {
    timer ||= setTimeout(() => announce(announcement, true), ANNOUNCEMENT_INTERVAL);
  }
}

function showProgress() {
  const hasItems = items.length > 0;
  const numDone = items.filter(isDone).length;
  const numFailed =
    items.filter((item) => isDone(item) && labelsOf(item).includes('failed')).length;
  document.body.classList.toggle('has-items', hasItems);
  for (const id of ['progress', 'images', 'download', 'download-csv', 'clear']) {
    find(id).hidden = !hasItems;
  }
  find('command').hidden = find('intro').hidden = hasItems;
  find('retry').hidden = !numFailed;
  [find('progress-bar').max, find('progress-bar').value] = [Math.max(1, items.length), numDone];
  find('progress-text').textContent = `${numDone - numFailed} of ${items.length} scored`
    + (numFailed ? `, ${numFailed} failed` : '');
  if (hasItems) {
    announce(`${find('progress-text').textContent}. ${describeCounts()}`,
      numDone === items.length);
  }
}

const describeCounts = () => selectedModels.map((name) => {
  const { OK, review, NG } = countLabels(name);
  return `${selectedModels.length > 1 ? `${name}: ` : ''}${OK} OK, ${review} review, ${NG} NG`;
}).join('; ');

function showCommand() {
  const url = new URL('/image-anomaly-detection', location.href);
  if (selectedModels.length && models.size > 1) url.searchParams.set('model', selectedModels[0]);
  const authorization = token.required ? ['-H "Authorization: Bearer $TOKEN"'] : [];
  find('curl').textContent = ['curl', ...authorization,
    "-H 'Content-Type: application/octet-stream'", '--data-binary @image.png',
    quoteForShell(url.href)].join(' ');
}

function startToken() {
  token.show = (wasRejected) => {
    find('token').hidden = false;
    find('token-hint').textContent = wasRejected ? 'The service rejected this token.'
      : 'This service requires a token. It is stored for this browser tab only.';
    find('token-value').focus();
    showCommand();
  };
  find('token').addEventListener('submit', (event) => {
    event.preventDefault();
    token.set(find('token-value').value.trim());
    find('token-value').value = '';
    find('token').hidden = true;
  });
}

function startModelChoice() {
  const names = [...models.keys()];
  const makeOptions = () => names.map((name) => make('option', { value: name }, name));
  find('first-model').append(...makeOptions());
  find('second-model').append(make('option', { value: '' }, 'none'), ...makeOptions());
  find('second-model-label').hidden = names.length < 2;
  find('model-choice').hidden = false;
  const change = () => {
    selectModels(find('first-model').value, find('second-model').value);
    for (const option of find('second-model').options) {
      option.disabled = option.value === selectedModels[0];
    }
    if (selectedModels.length < 2) find('second-model').value = '';
    items.forEach(enqueue);
    emit('items');
    sendRequests();
    showCommand();
  };
  for (const id of ['first-model', 'second-model']) find(id).addEventListener('change', change);
  change();
}

async function loadModels() {
  for (;;) {
    try {
      const descriptions = await listModels(showNotice);
      for (const description of descriptions) {
        description.region &&= await readRegion(description.region);
      }
      setModels(descriptions);
      showNotice('');
      break;
    } catch (error) {
      showNotice(error.message);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  startModelChoice();
}

startToken();
startPanels();
startGrouping();
startGrid(enlarge);
startZoom();
startDrawing();
startUpload(add);
on('items', showProgress);
on('thresholds', (isFinal) => isFinal && items.length && announce(describeCounts()));
find('clear').addEventListener('click', clear);
find('retry').addEventListener('click', retry);
find('download').addEventListener('click', () =>
  download('verdicts.json', `${JSON.stringify(summarize(), null, 2)}\n`, 'application/json'));
find('download-csv').addEventListener('click', () =>
  download('verdicts.csv', toCsv(tabulate()), 'text/csv'));
startCopy(find('copy'), find('curl'));
showCommand();
loadModels();
