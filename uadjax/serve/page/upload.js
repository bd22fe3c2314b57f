// Adding images: drag and drop, file dialogs and the clipboard; folders are read recursively.

import { find } from './elements.js';
import { compareNames } from './parts.js';

const IMAGE_SUFFIX = /\.(jpe?g|jfif|jpe|png|bmp|dib|tiff?|webp|gif|ppm|pgm|pnm|jp2)$/i;

const readEntries = (reader) =>
  new Promise((resolve, reject) => reader.readEntries(resolve, reject));
const readFile = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

// Lists all files below an entry with their paths. A reader returns them in batches of a hundred.
async function listFiles(entry) {
  const path = entry.fullPath.replace(/^\//, '');
  if (entry.isFile) {
    return [{ name: path, file: await readFile(entry), inFolder: path.includes('/') }];
  }
  const reader = entry.createReader();
  const entries = [];
  let batch;
  do {
    batch = await readEntries(reader);
    entries.push(...batch);
  } while (batch.length);
  return (await Promise.all(entries.map(listFiles))).flat();
}

const describeFile = (file) => ({
  name: file.webkitRelativePath || file.name, file, inFolder: Boolean(file.webkitRelativePath),
});

async function readDrop({ items }) {
  // All entries are fetched before the first await: the browser empties the list after it.
  const entries = [...items].filter(({ kind }) => kind === 'file')
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  const lists = entries.map((entry) =>
    (entry instanceof File ? [describeFile(entry)] : listFiles(entry).catch(() => [])));
  return (await Promise.all(lists)).flat();
}

// Other files are skipped in folders only; a file chosen by itself is scored whatever its suffix.
function selectImages(files) {
  const images = files.filter(({ name, inFolder }) => !inFolder || IMAGE_SUFFIX.test(name));
  return { images: images.sort((a, b) => compareNames(a.name, b.name)),
    numSkipped: files.length - images.length };
}

export function startUpload(add) {
  const addFiles = (files) => add(selectImages(files));
  for (const kind of ['files', 'folder']) {
    const input = find(`${kind}-input`);
    find(kind).addEventListener('click', () => input.click());
    input.addEventListener('change', () => {
      addFiles([...input.files].map(describeFile));
      input.value = '';  // Else choosing the same file again fires no event.
    });
  }
  find('folder').hidden = !('webkitdirectory' in find('folder-input'));
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
  const markDropZone = (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add('dragging');
  };
  addEventListener('dragenter', markDropZone);
  addEventListener('dragover', markDropZone);
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) document.body.classList.remove('dragging');
  });
  addEventListener('drop', async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove('dragging');
    addFiles(await readDrop(event.dataTransfer));
  });
  addEventListener('paste', (event) => {
    const files = [...event.clipboardData?.files ?? []];
    if (files.length) addFiles(files.map(describeFile));
  });
}
