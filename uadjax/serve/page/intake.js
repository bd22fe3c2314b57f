// How images come in: dropped, chosen, pasted; folders with all that is in them.

import { find } from './dom.js';

const IMAGE = /\.(jpe?g|png|bmp|tiff?|webp)$/i;
const byName = new Intl.Collator('en', { numeric: true }).compare;

const entries = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

// All files below an entry, with their paths. A reader tells a hundred at a time.
async function below(entry) {
  const path = entry.fullPath.replace(/^\//, '');
  if (entry.isFile) return [{ name: path, file: await fileOf(entry), inside: path.includes('/') }];
  const reader = entry.createReader();
  const found = [];
  for (let some = await entries(reader); some.length; some = await entries(reader)) {
    found.push(...some);
  }
  return (await Promise.all(found.map(below))).flat();
}

const asked = (file) => ({
  name: file.webkitRelativePath || file.name, file, inside: Boolean(file.webkitRelativePath),
});

async function dropped({ items }) {
  // All at once: after the first wait nothing of a drop is left.
  const all = [...items].filter(({ kind }) => kind === 'file')
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  const parts = all.map((one) => (one instanceof File ? [asked(one)] : below(one).catch(() => [])));
  return (await Promise.all(parts)).flat();
}

// Of a folder images only; a file that was meant itself is judged whatever it is.
function sifted(found) {
  const images = found.filter(({ name, inside }) => !inside || IMAGE.test(name));
  return { images: images.sort((a, b) => byName(a.name, b.name)),
    others: found.length - images.length };
}

export function startIntake(add) {
  const give = (found) => add(sifted(found));
  for (const kind of ['files', 'folder']) {
    const input = find(`${kind}-input`);
    find(kind).addEventListener('click', () => input.click());
    input.addEventListener('change', () => {
      give([...input.files].map(asked));
      input.value = '';  // The same may be chosen again.
    });
  }
  find('folder').hidden = !('webkitdirectory' in find('folder-input'));
  const carries = (event) => event.dataTransfer?.types.includes('Files');
  const mark = (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.add('over');
  };
  addEventListener('dragenter', mark);
  addEventListener('dragover', mark);
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) document.body.classList.remove('over');
  });
  addEventListener('drop', async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.remove('over');
    give(await dropped(event.dataTransfer));
  });
  addEventListener('paste', (event) => {
    const files = [...event.clipboardData?.files ?? []];
    if (files.length) give(files.map(asked));
  });
}
