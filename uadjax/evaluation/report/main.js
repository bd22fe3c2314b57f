// Key numbers, threshold form, verdicts by defect type, and provenance. Starts all sections.

// Class, label and meaning of each key number.
const OUTCOMES = [
  ['defective', 'NG', 'Defective, found (NG)'], ['defective', 'review', 'Defective, to review'],
  ['defective', 'OK', 'Defective, missed (OK)'], ['good', 'OK', 'Good, passed (OK)'],
  ['good', 'review', 'Good, to review'], ['good', 'NG', 'Good, falsely rejected (NG)'],
];

function writeHeader() {
  find('title').textContent = report.title;
  const { method, description } = report.thresholds;
  find('summary').textContent = report.summary + (images.length ? ` ${method}.` : '');
  find('label-legend').textContent = LABEL_LEGEND;
  find('warnings').append(...report.warnings.map(({ message }) => make('li', {}, message)));
  find('threshold-description').textContent = `Thresholds: ${description}`;
  const { metrics } = report;
  const ranking = [['Image AUROC', metrics.image_auroc], ['Pixel AUROC', metrics.pixel_auroc],
    ['AU-PRO', metrics.au_pro]];
  find('ranking-metrics').append(...ranking.map(([name, value]) => make('li', {}, `${name} `,
    make('strong', {}, Number.isFinite(value) ? value.toFixed(4) : '–'))));
  const tiles = OUTCOMES.map(() => make('li', {}, make('strong'), make('span'),
    make('span', { class: 'part-count' })));
  find('key-numbers').append(...tiles);
  onThresholds(() => {
    const rates = computeRates();
    OUTCOMES.forEach(([className, label, name], i) => {
      const { images: total, [label]: count } = rates[className];
      const [number, description, partCount] = tiles[i].children;
      number.textContent = total ? `${count} of ${total}` : '–';
      description.textContent = total ? `${name}, ${formatPercent(count / total)}`
        : `No ${className} images`;
      partCount.textContent = describePartCount(className === 'defective', label);
    });
  });
}

const INPUT_IDS = { reviewThreshold: 'review-threshold', imageThreshold: 'image-threshold' };

function startThresholdForm() {
  for (const [key, id] of Object.entries(INPUT_IDS)) {
    find(id).addEventListener('change', () => {
      const value = find(id).valueAsNumber;
      setThresholds(Number.isNaN(value) ? {} : { [key]: value });
    });
  }
  find('thresholds').addEventListener('submit', (event) => event.preventDefault());
  find('reset').addEventListener('click', () => {
    setThresholds(calibrated);
    setPixelThreshold(calibratedPixelThreshold);
  });
  onThresholds((isFinal) => {
    for (const [key, id] of Object.entries(INPUT_IDS)) {
      const value = thresholds[key];
      find(id).value = Number.isFinite(value) ? Number(value.toPrecision(6)) : '';
    }
    const { good, defective, falseAlarmRate, missRate, recall, precision, f1 } =
      computeRates();
    const sum = (name) => `${good[name] + defective[name]}`;
    const byClass = (name) => `${good[name]} good, ${defective[name]} defective`;
    const numbers = [
      ...['OK', 'review', 'NG'].map((name) => [makeBadge(name), sum(name), byClass(name)]),
      ['False alarms', formatPercent(falseAlarmRate), `${good.NG} of ${good.images} good are NG`],
      ['Missed', formatPercent(missRate),
        `${defective.OK} of ${defective.images} defective are OK`],
      ['Precision', formatPercent(precision), 'defective images among NG'],
      ['Recall', formatPercent(recall), 'NG among defective images'],
      ['F1', f1 === null ? '–' : f1.toFixed(3), 'of precision and recall'],
    ];
    find('numbers').replaceChildren(...numbers.map(([name, value, explanation]) =>
      make('div', {}, make('dt', {}, name),
        make('dd', {}, make('strong', {}, value), make('span', {}, explanation)))));
    if (isFinal) {
      find('announcement').textContent = `${sum('OK')} OK, ${sum('review')} review, `
        + `${sum('NG')} NG; false alarms ${formatPercent(falseAlarmRate)}, `
        + `missed ${formatPercent(missRate)}.`;
    }
  });
}

const modelDirectory = report.provenance.model?.directory ?? 'MODEL_DIR';

// The pixel threshold is that of the gallery.
function showThresholdCommand() {
  const command = thresholdCommand(modelDirectory,
    { ...calibrated, pixelThreshold: calibratedPixelThreshold },
    { ...thresholds, pixelThreshold: overlay.pixelThreshold });
  find('command').textContent = command;
  find('threshold-command').hidden = !command;
}

// Other budgets, if the evaluation advises to choose one.
function writeAdvice() {
  const advice = report.metrics.threshold_advice;
  if (!advice) return;
  const head = ['Budget', 'Expected false alarms', '95\u00a0% upper bound', 'Defects found',
    'Option'];
  const rows = advice.trade_off.map((row) => [formatPercent(row.budget),
    formatPercent(row.expected_false_alarm_rate), formatPercent(row.false_alarm_rate_bound),
    row.defects_found, row.option]);
  find('advice').append(make('p', {}, advice.message));
  if (!rows.length) return;
  find('advice').append(
    make('table', {},
      make('thead', {}, make('tr', {}, ...head.map((name) => make('th', { scope: 'col' }, name)))),
      make('tbody', {}, ...rows.map((row) =>
        make('tr', {}, ...row.map((cell) => make('td', {}, cell)))))),
    make('p', { class: 'hint' },
      `To set the thresholds of a row: uadjax threshold ${quoteForShell(modelDirectory)} OPTION`));
}

function writeDefectTypes() {
  if (!images.length) {
    find('defect-types').append(make('p', { class: 'hint' }, 'There are no test images.'));
    return;
  }
  const head = ['Defect type', 'All', 'OK', 'Review', 'NG', 'Error rate'].map((name) =>
    make('th', { scope: 'col' }, name));
  const rows = [...defectTypes, ...heldOutTypes].map((defectType) => {
    const cells = Array.from({ length: 5 }, () => make('td', { class: 'count' }));
    const bars = ['NG', 'review', 'OK'].map((name) => make('span', { class: name }));
    const header = make('div', { class: 'defect-type' }, make('bdi', {}, defectType.name),
      make('span', { class: 'stack' }, ...bars));
    const row = make('tr', { class: defectType.heldOut ? 'held-out' : '' },
      make('th', { scope: 'row' }, header), ...cells);
    return { defectType, cells, bars, row };
  });
  find('defect-types').append(make('table', {}, make('thead', {}, make('tr', {}, ...head)),
    make('tbody', {}, ...rows.map(({ row }) => row))),
    make('p', { class: 'hint' },
      'Error rate: share of good images that are NG, or of defective images that are OK.'
      + (heldOutTypes.length ? ' Held-out images are not test images, and are not counted '
        + 'elsewhere.' : '')));
  onThresholds(() => {
    for (const { defectType, cells, bars } of rows) {
      const counts = countLabels(defectType);
      const numErrors = defectType.good ? counts.NG : counts.OK;
      const errorName = defectType.good ? 'false alarms' : 'missed';
      ['images', 'OK', 'review', 'NG'].forEach((name, i) => cells[i].textContent = counts[name]);
      cells[4].replaceChildren(formatPercent(numErrors / counts.images),
        make('small', {}, errorName));
      cells[4].classList.toggle('has-errors', numErrors > 0);
      bars.forEach((bar) => bar.style.flexGrow = counts[bar.className]);
    }
  });
}

// Names that end in `_s` are seconds, unless they are rates such as `images_per_s`.
const isInSeconds = (name) => /(?<!per)_s$/.test(name);
const toWords = (name) => name.replace(/(?<!per)_s$/, '').replaceAll('_', ' ');
const isGroup = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

function formatValue(value) {
  if (value === null || value === '') return '–';
  if (Array.isArray(value)) return value.map(formatValue).join(', ');
  return typeof value === 'number' && !Number.isInteger(value) ? formatNumber(value, 6)
    : String(value);
}

function makeList(group) {
  return make('dl', { class: 'properties' }, ...Object.entries(group).map(([name, value]) =>
    make('div', {}, make('dt', {}, toWords(name)), make('dd', {},
      isGroup(value) ? makeList(value) : formatValue(value) + (isInSeconds(name) ? ' s' : '')))));
}

// Metrics at a threshold that was chosen with the labels of the test images.
const markOracles = ({ oracles = [], ...metrics }) => Object.fromEntries(Object.entries(metrics)
  .map(([name, value]) => [oracles.includes(name) ? `${name} (oracle)` : name, value]));

function writeProvenance() {
  const { config, ...groups } = report.provenance;
  const section = find('provenance');
  for (const [name, value] of Object.entries(groups)) {
    section.append(make('section', {}, make('h3', {}, toWords(name)),
      isGroup(value) ? makeList(value) : make('p', {}, formatValue(value))));
  }
  for (const [name, value] of [
    ['All metrics', markOracles(report.metrics)], ['Resolved configuration', config],
  ]) {
    if (value) {
      section.append(make('details', {}, make('summary', {}, name),
        make('pre', { tabindex: 0 }, JSON.stringify(value, null, 2))));
    }
  }
}

writeHeader();
startThresholdForm();
startCopy(find('copy'), find('command'));
onThresholds(showThresholdCommand);
writeAdvice();
writeDefectTypes();
if (images.length) drawHistogram(find('histogram'), find('histogram-hint'));
for (const panel of ['roc', 'pr', 'pro']) {
  const figure = make('figure', { id: panel });
  find('curves').append(figure);
  drawCurve(figure, panel);
}
startGallery();
writeProvenance();
