// Gallery: pictures as tiles, sorted and filtered, and one picture enlarged.

const pictures = read('pictures').map((picture) => {
  const image = images[picture.image_index];
  return { ...picture, ...image, isDefective: !isGoodType.get(image.defect) };
});
let visiblePictures = [];

const TILES_PER_STEP = 60;  // Tiles shown at first, and added by each click on the button below.
let numTiles = TILES_PER_STEP;

const labelOf = (picture) => labelImage(picture, thresholds);

const typeIndices = new Map(report.defect_types.map(({ name }, i) => [name, i]));
const ORDERS = {
  worst: (a, b) => compareWorst(a, b, thresholds),
  high: (a, b) => b.score - a.score,
  low: (a, b) => a.score - b.score,
  defect: (a, b) =>
    typeIndices.get(a.defect) - typeIndices.get(b.defect) || b.score - a.score,
  name: (a, b) => compareNames(a.path, b.path),
  part: (a, b) => compareParts(partsByName.get(a.part), partsByName.get(b.part))
    || compareWorst(a, b, thresholds),
};

const isMisclassified = (picture) => isWrong(labelOf(picture), picture.isDefective);

function errorName(picture) {
  if (!isMisclassified(picture)) return '';
  return picture.isDefective ? 'missed' : 'false alarm';
}

function makeTile(picture) {
  picture.canvas = make('canvas');
  picture.canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  picture.verdict = make('span', { class: 'verdict' });
  picture.partLine = make('span', { class: 'part' });
  picture.button = make('button', { type: 'button' }, picture.canvas,
    make('span', { class: 'caption' }, picture.verdict,
      make('span', { class: 'score' }, formatNumber(picture.score)), picture.partLine,
      make('bdi', { class: 'path', title: picture.path }, picture.path)));
  picture.button.addEventListener('click', () => zoom.open(picture));
  picture.tile = make('li', {}, picture.button);
  picture.tile.picture = picture;
  viewportObserver.observe(picture.tile);
}

// Only tiles near the viewport are painted: hundreds of canvases exceed the memory of a phone.
const viewportObserver = new IntersectionObserver((entries) => {
  for (const { target: { picture }, isIntersecting } of entries) {
    picture.isNearViewport = isIntersecting;
    if (isIntersecting) paintTile(picture);
    else configure(picture.canvas, { width: 0, height: 0 });
  }
}, { rootMargin: '400px' });

async function paintTile(picture) {
  const layers = await loadLayers(picture);
  if (!picture.isNearViewport) return;
  const { canvas } = picture;
  const ratio = Math.min(window.devicePixelRatio, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(width * picture.height / picture.width));
  if (canvas.width !== width || canvas.height !== height) configure(canvas, { width, height });
  paintPicture(canvas.getContext('2d'), picture, layers, { x: 0, y: 0, width, height }, ratio);
}

function showVerdict(picture) {
  const [label, error] = [labelOf(picture), errorName(picture)];
  const part = partsByName.get(picture.part);
  const key = [label, error, part?.label].join();
  if (picture.displayedVerdict === key) return;
  picture.displayedVerdict = key;
  picture.verdict.replaceChildren(makeBadge(label));
  if (error) picture.verdict.append(make('span', { class: 'error' }, error));
  const warningNames = nameWarnings(picture.warnings);
  if (warningNames) picture.verdict.append(make('span', { class: 'warnings' }, warningNames));
  if (part) {
    picture.partLine.replaceChildren('Part ', make('bdi', {}, part.part), makeBadge(part.label));
  }
  picture.button.setAttribute('aria-label', `${picture.path}: ${label}${error && `, ${error}`}, `
    + `score ${formatNumber(picture.score)}, ${picture.defect}`
    + (part ? `, part ${part.part}: ${part.label}` : ''));
}

function arrange() {
  const [label, typeIndex, partName] =
    ['label-filter', 'type-filter', 'part-filter'].map((id) => find(id).value);
  visiblePictures = pictures
    .filter((picture) => !label || (label === 'misclassified' ? isMisclassified(picture)
      : labelOf(picture) === label))
    .filter(({ defect }) => !typeIndex || typeIndices.get(defect) === Number(typeIndex))
    .filter(({ part }) => !partName || part === partName)
    .sort(ORDERS[find('order').value]);
  showTiles();
  const others = pictures.length < images.length ? '; all images are counted above' : '';
  const { coarse } = report.pictures;
  find('visible-count').textContent = pictures.length
    ? `${visiblePictures.length} of ${pictures.length} pictures, of ${images.length} images`
      + `${others}.` + (coarse ? ` ${coarse} have a lower quality to limit the file size.` : '')
    : 'This report has no pictures.';
}

// Lists the parts that have pictures, the worst first.
function showPartChoice() {
  const partName = find('part-filter').value;
  const withPictures = new Set(pictures.map(({ part }) => part));
  const options = parts.filter(({ part }) => withPictures.has(part)).sort(compareParts)
    .map(({ part, label, images: { length } }) => make('option', { value: part },
      `${part}: ${label}, ${length} image${length === 1 ? '' : 's'}`));
  find('part-filter').replaceChildren(make('option', { value: '' }, 'all'), ...options);
  find('part-filter').value = partName;
}

function showTiles() {
  find('tiles').replaceChildren(...visiblePictures.slice(0, numTiles).map(({ tile }) => tile));
  find('more').textContent =
    `Show ${Math.min(TILES_PER_STEP, visiblePictures.length - numTiles)} more`;
  find('more').hidden = visiblePictures.length <= numTiles;
}

const repaint = oncePerFrame(() => {
  visiblePictures.filter((picture) => picture.isNearViewport).forEach(paintTile);
  zoom.paint();
});

function setPixelThreshold(value) {
  overlay.pixelThreshold = value;
  if (Number.isFinite(value)) find('pixel-threshold').value = value;
  find('color-bar').replaceChildren(makeColorBar(currentScale(), formatNumber, ''));
  showThresholdCommand();
  repaint();
}

function startGallery() {
  find('type-filter').append(make('option', { value: '' }, 'all'),
    ...report.defect_types.map(({ name }, i) => make('option', { value: i }, name)));
  pictures.forEach(makeTile);
  find('part-choice').hidden = !parts.length;
  if (!parts.length) find('order').querySelector('[value=part]').remove();
  for (const id of ['order', 'label-filter', 'type-filter', 'part-filter']) {
    find(id).addEventListener('change', arrange);
  }
  find('more').addEventListener('click', () => {
    numTiles += TILES_PER_STEP;
    showTiles();
  });
  const values = [calibratedPixelThreshold, ...pictures.flatMap(({ low, high }) => [low, high])]
    .filter(Number.isFinite);
  if (values.length) {
    configure(find('pixel-threshold'), { min: Math.min(...values), max: Math.max(...values) });
  }
  find('pixel-threshold').addEventListener('input', ({ target }) =>
    setPixelThreshold(target.valueAsNumber));
  find('tools').addEventListener('input', () => {
    overlay.opacity = find('opacity').value / 100;
    overlay.outlines = find('show-outlines').checked;
    overlay.truth = find('show-truth').checked;
    repaint();
  });
  setPixelThreshold(calibratedPixelThreshold);
  new ResizeObserver(repaint).observe(find('tiles'));
  onThresholds((isFinal) => {
    pictures.forEach(showVerdict);
    if (isFinal) {  // Tiles keep their places while a threshold is being dragged.
      showPartChoice();
      arrange();
    }
    zoom.update();
    repaint();  // Outlines of images to review depend on these thresholds.
  });
}

const zoom = (() => {
  const [dialog, canvas] = [find('zoom'), find('zoom-canvas')];
  let picture;
  let view = { scale: 1, x: 0, y: 0 };  // CSS pixels from the canvas' center to the picture's.

  function open(newPicture) {
    picture = newPicture;
    view = { scale: 1, x: 0, y: 0 };
    if (!dialog.open) {
      find('zoom-tools').append(find('tools'));  // The overlay settings move into the dialog.
      dialog.showModal();
    }
    update();
    paint();
  }

  function update() {
    if (!dialog.open) return;
    find('zoom-name').textContent = picture.path;
    const { defect, score, truth, at } = picture;
    const note = picture.isDefective && !truth ? 'no ground truth' : '';
    const place = labelOf(picture) === 'review' && at ? `look at x ${at[0]}, y ${at[1]}` : '';
    const messages = picture.warnings.map(({ message }) => message);
    const part = partsByName.get(picture.part);
    const texts = [errorName(picture), defect, `score ${formatNumber(score, 6)}`, place, note,
      part && `part ${part.part}: ${part.label}`, ...messages,
      `${visiblePictures.indexOf(picture) + 1} of ${visiblePictures.length}`].filter(Boolean);
    find('zoom-info').replaceChildren(makeBadge(labelOf(picture)),
      ...texts.map((text) => make('bdi', {}, text)));
  }

  async function paint() {
    if (!dialog.open) return;
    const currentPicture = picture;
    const layers = await loadLayers(currentPicture);
    if (currentPicture !== picture || !dialog.open) return;
    const ratio = window.devicePixelRatio;
    const canvasWidth = Math.round(canvas.clientWidth * ratio);
    const canvasHeight = Math.round(canvas.clientHeight * ratio);
    configure(canvas, { width: canvasWidth, height: canvasHeight });
    const scale =
      Math.min(canvasWidth / picture.width, canvasHeight / picture.height) * view.scale;
    const [width, height] = [picture.width * scale, picture.height * scale];
    const x = (canvasWidth - width) / 2 + view.x * ratio;
    const y = (canvasHeight - height) / 2 + view.y * ratio;
    paintPicture(canvas.getContext('2d'), picture, layers, { x, y, width, height }, ratio);
  }

  function step(offset) {
    const next = visiblePictures[visiblePictures.indexOf(picture) + offset];
    if (next) open(next);
  }

  // Zooms about the point (x, y), which is relative to the center of the canvas.
  function zoomBy(factor, x = 0, y = 0) {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    const ratio = scale / view.scale;
    view = scale === 1 ? { scale, x: 0, y: 0 }
      : { scale, x: x - ratio * (x - view.x), y: y - ratio * (y - view.y) };
    paint();
  }

  const KEYS = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), '+': () => zoomBy(1.5),
    '=': () => zoomBy(1.5), '-': () => zoomBy(1 / 1.5), 0: () => zoomBy(0) };
  dialog.addEventListener('keydown', (event) => {
    if (!KEYS[event.key] || event.target.matches('input')) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  dialog.addEventListener('close', () => {
    find('tools-place').append(find('tools'));
    picture.button.focus();
  });
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 400),
      event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
  }, { passive: false });

  // One pointer drags; two pointers pinch.
  const pointers = new Map();
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!pointers.has(event.pointerId)) return;
    const previous = pointers.get(event.pointerId);
    const current = [event.clientX, event.clientY];
    pointers.set(event.pointerId, current);
    if (pointers.size === 1) {
      if (view.scale > 1) {
        view.x += current[0] - previous[0];
        view.y += current[1] - previous[1];
        paint();
      }
    } else {
      const [[id, other]] = [...pointers].filter(([pointerId]) => pointerId !== event.pointerId);
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      if (id) zoomBy(distance(current) / distance(previous));
    }
  });
  for (const type of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(type, (event) => pointers.delete(event.pointerId));
  }
  const BUTTONS = { previous: () => step(-1), next: () => step(1), 'zoom-in': () => zoomBy(1.5),
    'zoom-out': () => zoomBy(1 / 1.5), close: () => dialog.close() };
  for (const [id, action] of Object.entries(BUTTONS)) find(id).addEventListener('click', action);
  new ResizeObserver(paint).observe(canvas);
  return { open, update, paint };
})();
