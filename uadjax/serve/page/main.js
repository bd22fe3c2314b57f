// The page: what is asked of the service, four images at a time, and how far that has come.

import { find, make, plural, save } from './dom.js';
import { forget, startGrid } from './grid.js';
import { startIntake } from './intake.js';
import { startPanels } from './panel.js';
import { judge, listModels, token } from './service.js';
import { choose, chosen, counts, isDone, items, know, labels, models, on, summary, tell }
  from './state.js';
import { enlarge, startZoom } from './zoom.js';

const AT_ONCE = 4;
const SILENCE = 3000;  // Milliseconds between two announcements.
let queue = [];  // Of { item, name }.
let [running, stop] = [0, new AbortController()];

function ask(item) {
  for (const name of chosen) {
    if (item.asked.has(name)) continue;
    item.asked.add(name);
    queue.push({ item, name });
  }
}

function pump() {
  while (running < AT_ONCE && queue.length) {
    const { item, name } = queue.shift();
    if (chosen.includes(name)) one(item, name);
    else item.asked.delete(name);  // Another model was chosen meanwhile.
  }
}

async function one(item, name) {
  const { signal } = stop;
  running++;
  try {
    item.results.set(name, await judge(item.file, name, signal, wait));
  } catch (error) {
    if (!signal.aborted) item.errors.set(name, error.message);
  }
  if (signal.aborted) return;
  running--;
  tell('items');
  pump();
}

function add({ images, others }) {
  for (const { name, file } of images) {
    items.push({ name, file, results: new Map(), errors: new Map(), asked: new Set() });
  }
  find('left-out').hidden = images.length > 0 && !others;
  find('left-out').textContent = others ? `Left out: ${plural(others, 'file')} of the folder, no `
    + 'image.' : 'There is no image in it.';
  items.forEach(ask);
  tell('items');
  pump();
}

function clear() {
  stop.abort();
  [stop, queue, running, waiting] = [new AbortController(), [], 0, 0];
  items.forEach(forget);
  items.length = 0;
  notice('');
  find('left-out').hidden = true;
  tell('items');
  find('files').focus();
}

function again() {
  for (const item of items) {
    for (const name of item.errors.keys()) item.asked.delete(name);
    item.errors.clear();
    ask(item);
  }
  tell('items');
  pump();
}

// As long as any request waits, it is told why.
let waiting = 0;
function wait(text) {
  waiting += text ? 1 : -1;
  if (text || !waiting) notice(text);
}

function notice(text) {
  find('notice').hidden = !text;
  if (find('notice').textContent !== text) find('notice').textContent = text;
}

let [said, timer] = ['', 0];
function speak(text, now) {
  said = text;
  if (now) {
    clearTimeout(timer);
    timer = 0;
    find('spoken').textContent = said;
  } else {
    timer ||= setTimeout(() => speak(said, true), SILENCE);
  }
}

function progress() {
  const some = items.length > 0;
  const done = items.filter(isDone).length;
  const failed = items.filter((item) => isDone(item) && labels(item).includes('failed')).length;
  document.body.classList.toggle('some', some);
  for (const id of ['progress', 'images', 'download', 'clear']) find(id).hidden = !some;
  find('call').hidden = find('what').hidden = some;
  find('again').hidden = !failed;
  [find('bar').max, find('bar').value] = [Math.max(1, items.length), done];
  find('done').textContent = `${done - failed} of ${items.length} judged`
    + (failed ? `, ${failed} failed` : '');
  if (some) speak(`${find('done').textContent}. ${tally()}`, done === items.length);
}

const tally = () => chosen.map((name) => {
  const { OK, review, NG } = counts(name);
  return `${chosen.length > 1 ? `${name}: ` : ''}${OK} OK, ${review} to review, ${NG} NG`;
}).join('; ');

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
function tellCall() {
  const url = new URL('/image-anomaly-detection', location.href);
  if (chosen.length && models.size > 1) url.searchParams.set('model', chosen[0]);
  const bearer = token.needed ? ['-H "Authorization: Bearer $TOKEN"'] : [];
  find('curl').textContent = ['curl', ...bearer, "-H 'Content-Type: application/octet-stream'",
    '--data-binary @image.png', quoted(url.href)].join(' ');
}

function startToken() {
  token.show = (wrong) => {
    find('token').hidden = false;
    find('token-told').textContent = wrong ? 'That token was refused.'
      : 'This service needs a token; it is kept in this tab only.';
    find('token-value').focus();
    tellCall();
  };
  find('token').addEventListener('submit', (event) => {
    event.preventDefault();
    token.set(find('token-value').value.trim());
    find('token-value').value = '';
    find('token').hidden = true;
  });
}

function startChoice() {
  const names = [...models.keys()];
  const options = () => names.map((name) => make('option', { value: name }, name));
  find('first').append(...options());
  find('second').append(make('option', { value: '' }, 'none'), ...options());
  find('second-choice').hidden = names.length < 2;
  find('choice').hidden = false;
  const change = () => {
    choose(find('first').value, find('second').value);
    for (const option of find('second').options) option.disabled = option.value === chosen[0];
    if (chosen.length < 2) find('second').value = '';
    items.forEach(ask);
    tell('items');
    pump();
    tellCall();
  };
  for (const id of ['first', 'second']) find(id).addEventListener('change', change);
  change();
}

async function open() {
  for (;;) {
    try {
      know(await listModels(notice));
      notice('');
      break;
    } catch (error) {
      notice(error.message);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  startChoice();
}

startToken();
startPanels();
startGrid(enlarge);
startZoom();
startIntake(add);
on('items', progress);
on('limits', (settled) => settled && items.length && speak(tally()));
find('clear').addEventListener('click', clear);
find('again').addEventListener('click', again);
find('download').addEventListener('click', () =>
  save('verdicts.json', `${JSON.stringify(summary(), null, 2)}\n`));
find('copy').hidden = !navigator.clipboard;
find('copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(find('curl').textContent);
  find('copy').textContent = 'Copied';
  setTimeout(() => { find('copy').textContent = 'Copy'; }, 2000);
});
tellCall();
open();
