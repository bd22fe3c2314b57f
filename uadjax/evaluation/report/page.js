// The rest of the page: key numbers, counts by kind, provenance; then everything is started.

function writeHeader() {
  find('title').textContent = report.title;
  find('summary').textContent = (images.length ? `${report.thresholds.how}: ` : '') + report.summary;
  find('stand-on').textContent = `Thresholds: ${report.thresholds.stand_on}`;
  const { metrics } = report;
  const fixed = [['Image AUROC', metrics.image_auroc], ['Pixel AUROC', metrics.pixel_auroc],
    ['AU-PRO', metrics.au_pro]];
  const tiles = fixed.map(([name, value]) =>
    key(name, Number.isFinite(value) ? value.toFixed(4) : '–'));
  const [alarms, misses] = [key('False alarms', ''), key('Missed', '')];
  find('key').append(...tiles, alarms, misses);
  follow(() => {
    const { right, bad, alarms: rate, missed } = rates();
    const some = (tile, count, { images: all }, told, none) => {
      tile.firstChild.textContent = all ? `${count} of ${all}` : '–';
      tile.lastChild.textContent = all ? told : none;
    };
    some(alarms, right.NG, right, `False alarms (${percent(rate)})`, 'No good images');
    some(misses, bad.images - bad.NG, bad, `Missed (${percent(missed)})`, 'No defective images');
  });
}

const key = (name, value) => make('li', {}, make('strong', {}, value), make('span', {}, name));

function writeLimits() {
  for (const id of ['review', 'ng']) {
    find(id).addEventListener('change', () => {
      const value = find(id).valueAsNumber;
      moveTo(Number.isNaN(value) ? {} : { [id]: value });
    });
  }
  find('limits').addEventListener('submit', (event) => event.preventDefault());
  find('reset').addEventListener('click', () => {
    moveTo(calibrated);
    find('pixel').value = 128;
    find('tools').dispatchEvent(new Event('input'));
  });
  follow((settled) => {
    for (const id of ['review', 'ng']) {
      find(id).value = Number.isFinite(limits[id]) ? Number(limits[id].toPrecision(6)) : '';
    }
    const { right, bad, alarms, missed, recall, precision, f1 } = rates();
    const sum = (name) => `${right[name] + bad[name]}`;
    const both = (name) => `${right[name]} good, ${bad[name]} bad`;
    const numbers = [
      ...['OK', 'review', 'NG'].map((name) => [badge(name), sum(name), both(name)]),
      ['False alarms', percent(alarms), `${right.NG} of ${right.images} good are NG`],
      ['Missed', percent(missed), `${bad.images - bad.NG} of ${bad.images} bad are not NG`],
      ['Precision', percent(precision), 'bad, of all NG'],
      ['Recall', percent(recall), 'NG, of all bad'],
      ['F1', f1 === null ? '–' : f1.toFixed(3), 'of precision and recall'],
    ];
    find('numbers').replaceChildren(...numbers.map(([name, value, told]) =>
      make('div', {}, make('dt', {}, name),
        make('dd', {}, make('strong', {}, value), make('span', {}, told)))));
    if (settled) {
      find('spoken').textContent = `${sum('OK')} OK, ${sum('review')} to review, ${sum('NG')} NG; `
        + `false alarms ${percent(alarms)}, missed ${percent(missed)}.`;
    }
  });
}

function writeKinds() {
  if (!images.length) {
    find('kinds').append(make('p', { class: 'sentence' }, 'There are no test images.'));
    return;
  }
  const head = ['Kind', 'All', 'OK', 'Review', 'NG', 'Wrong'].map((name) =>
    make('th', { scope: 'col' }, name));
  const rows = [...kinds, ...heldOut].map((kind) => {
    const cells = Array.from({ length: 5 }, () => make('td', { class: 'count' }));
    const parts = ['NG', 'review', 'OK'].map((name) => make('span', { class: name }));
    const name = make('div', { class: 'kind' }, make('bdi', {}, kind.name),
      make('span', { class: 'stack' }, ...parts));
    const row = make('tr', { class: kind.counted ? '' : 'held-out' },
      make('th', { scope: 'row' }, name), ...cells);
    return { kind, cells, parts, row };
  });
  find('kinds').append(make('table', {}, make('thead', {}, make('tr', {}, ...head)),
    make('tbody', {}, ...rows.map(({ row }) => row))),
    make('p', { class: 'hint' }, 'Wrong: good images that are NG, defective ones that are not.'
      + (heldOut.length ? ' Held-out images are no test images: they count nowhere else.' : '')));
  follow(() => {
    for (const { kind, cells, parts } of rows) {
      const count = tally(kind);
      const wrong = kind.good ? count.NG : count.images - count.NG;
      const told = kind.good ? 'false alarms' : 'missed';
      ['images', 'OK', 'review', 'NG'].forEach((name, i) => cells[i].textContent = count[name]);
      cells[4].replaceChildren(percent(wrong / count.images), make('small', {}, told));
      cells[4].classList.toggle('some', wrong > 0);
      parts.forEach((part) => part.style.flexGrow = count[part.className]);
    }
  });
}

const inSeconds = (name) => /(?<!per)_s$/.test(name);
const words = (name) => name.replace(/(?<!per)_s$/, '').replaceAll('_', ' ');
const isGroup = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

function said(value) {
  if (value === null || value === '') return '–';
  if (Array.isArray(value)) return value.map(said).join(', ');
  return typeof value === 'number' && !Number.isInteger(value) ? number(value, 6) : String(value);
}

function table(group) {
  return make('dl', { class: 'facts' }, ...Object.entries(group).map(([name, value]) =>
    make('div', {}, make('dt', {}, words(name)), make('dd', {},
      isGroup(value) ? table(value) : said(value) + (inSeconds(name) ? ' s' : '')))));
}

function writeAbout() {
  const { config, ...rest } = report.about;
  const numbers = { ...report.metrics };
  for (const [name, value] of Object.entries(rest)) {
    find('about').append(make('section', {}, make('h3', {}, words(name)),
      isGroup(value) ? table(value) : make('p', {}, said(value))));
  }
  for (const [name, value] of [['All metrics', numbers], ['Resolved configuration', config]]) {
    if (value) {
      find('about').append(make('details', {}, make('summary', {}, name),
        make('pre', { tabindex: 0 }, JSON.stringify(value, null, 2))));
    }
  }
}

writeHeader();
writeLimits();
writeKinds();
if (images.length) drawHistogram(find('histogram'), find('histogram-hint'));
for (const panel of ['roc', 'pr', 'pro']) {
  const frame = make('figure', { id: panel });
  find('curves').append(frame);
  drawCurve(frame, panel);
}
startGallery();
writeAbout();
