// The gallery: tiles in an order of one's choice, one of them enlarged.

const shots = read('pictures').map((picture) => ({ ...picture, ...images[picture.image] }));
let shown = [];

const PAGE = 60;  // Tiles at first, and with each further request.
let most = PAGE;

// How far on the wrong side of the NG threshold, or less than 0: on the right one.
function wrongness(shot) {
  if (shot.score === limits.ng) return 0;
  const [score, ng] = [shot.score, limits.ng].map((v) => (axis.log && v > 0 ? axis.forward(v) : v));
  return good.get(shot.defect) ? score - ng : ng - score;
}

const byName = new Intl.Collator('en', { numeric: true }).compare;
const ORDERS = {
  worst: (a, b) => isWrong(b) - isWrong(a) || wrongness(b) - wrongness(a),
  high: (a, b) => b.score - a.score,
  low: (a, b) => a.score - b.score,
  defect: (a, b) => place.get(a.defect) - place.get(b.defect) || b.score - a.score,
  name: (a, b) => byName(a.path, b.path),
};
const place = new Map(report.kinds.map(({ name }, i) => [name, i]));

function isWrong(shot) {
  return good.get(shot.defect) === (verdict(shot.score) === 'NG');
}

function mistake(shot) {
  if (!isWrong(shot)) return '';
  return good.get(shot.defect) ? 'false alarm' : 'missed';
}

function makeTile(shot) {
  shot.canvas = make('canvas');
  shot.canvas.style.aspectRatio = `${shot.width} / ${shot.height}`;
  shot.verdict = make('span', { class: 'verdict' });
  shot.button = make('button', { type: 'button' }, shot.canvas,
    make('span', { class: 'caption' }, shot.verdict,
      make('span', { class: 'score' }, number(shot.score)),
      make('bdi', { class: 'path', title: shot.path }, shot.path)));
  shot.button.addEventListener('click', () => zoom.open(shot));
  shot.tile = make('li', {}, shot.button);
  shot.tile.shot = shot;
  near.observe(shot.tile);
}

// Only what is near the screen is drawn: hundreds of canvases would not fit into a phone.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.shot.near = isIntersecting;
    if (isIntersecting) paintTile(target.shot);
    else fill(target.shot.canvas, { width: 0, height: 0 }, []);
  }
}, { rootMargin: '400px' });

async function paintTile(shot) {
  const ready = await load(shot);
  if (!shot.near) return;
  const { canvas } = shot;
  const ratio = Math.min(window.devicePixelRatio, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(width * shot.height / shot.width));
  if (canvas.width !== width || canvas.height !== height) fill(canvas, { width, height }, []);
  paint(canvas.getContext('2d'), shot, ready, { x: 0, y: 0, width, height }, ratio);
}

function label(shot) {
  const [said, wrong] = [verdict(shot.score), mistake(shot)];
  const key = said + wrong;
  if (shot.labelled === key) return;
  shot.labelled = key;
  shot.verdict.replaceChildren(badge(said));
  if (wrong) shot.verdict.append(make('span', { class: 'wrong' }, wrong));
  shot.button.setAttribute('aria-label',
    `${shot.path}: ${said}${wrong && `, ${wrong}`}, score ${number(shot.score)}, ${shot.defect}`);
}

function arrange() {
  const [said, kind] = [find('by-label').value, find('by-kind').value];
  shown = shots
    .filter((shot) => !said || (said === 'wrong' ? isWrong(shot) : verdict(shot.score) === said))
    .filter((shot) => !kind || place.get(shot.defect) === Number(kind))
    .sort(ORDERS[find('order').value]);
  lay();
  const some = shots.length < images.length ? `; the others are in the counts above` : '';
  const { coarse } = report.pictures;
  find('shown').textContent = shots.length
    ? `${shown.length} of ${shots.length} pictures, of ${images.length} images${some}.`
      + (coarse ? ` ${coarse} are coarse, to keep this file small.` : '')
    : 'This report has no pictures.';
}

function lay() {
  find('tiles').replaceChildren(...shown.slice(0, most).map((shot) => shot.tile));
  find('more').textContent = `Show ${Math.min(PAGE, shown.length - most)} more`;
  find('more').hidden = shown.length <= most;
}

let asked = 0;
function repaint() {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    shown.filter((shot) => shot.near).forEach(paintTile);
    zoom.paint();
  });
}

// A level of the map as a value: those below the middle are not marked, see `Scale`.
function valueOf(level) {
  const [low, middle, high] = shots[0].scale;
  return level < 128 ? low + (middle - low) * level / 128
    : middle + (high - middle) * (level - 128) / 128;
}

function startGallery() {
  find('by-kind').append(make('option', { value: '' }, 'all'),
    ...report.kinds.map(({ name }, i) => make('option', { value: i }, name)));
  shots.forEach(makeTile);
  for (const id of ['order', 'by-label', 'by-kind']) find(id).addEventListener('change', arrange);
  find('more').addEventListener('click', () => {
    most += PAGE;
    lay();
  });
  const change = () => {
    over.opacity = find('opacity').value / 100;
    over.level = find('pixel').value - 0.5;
    over.marked = find('show-marked').checked;
    over.truth = find('show-truth').checked;
    if (shots.length) find('pixel-value').textContent = number(valueOf(find('pixel').value));
    repaint();
  };
  find('tools').addEventListener('input', change);
  change();
  new ResizeObserver(repaint).observe(find('tiles'));
  follow((settled) => {
    shots.forEach(label);
    if (settled) arrange();  // Tiles must not dance while a threshold is dragged.
    zoom.tell();
  });
}

const zoom = (() => {
  const [dialog, canvas] = [find('zoom'), find('zoom-canvas')];
  let shot;
  let view = { scale: 1, x: 0, y: 0 };  // Pixels of the screen that the picture's middle is off.

  function open(which) {
    shot = which;
    view = { scale: 1, x: 0, y: 0 };
    if (!dialog.open) {
      find('zoom-tools').append(find('tools'));  // The same settings, within reach.
      dialog.showModal();
    }
    tell();
    paintNow();
  }

  function tell() {
    if (!dialog.open) return;
    find('zoom-name').textContent = shot.path;
    const wrong = mistake(shot);
    const truth = !good.get(shot.defect) && !shot.truth ? ['no ground truth'] : [];
    const told = [wrong, shot.defect, `score ${number(shot.score, 6)}`, ...truth,
      `${shown.indexOf(shot) + 1} of ${shown.length}`].filter(Boolean);
    find('zoom-told').replaceChildren(badge(verdict(shot.score)),
      ...told.map((text) => make('bdi', {}, text)));
  }

  async function paintNow() {
    if (!dialog.open) return;
    const which = shot;
    const ready = await load(which);
    if (which !== shot || !dialog.open) return;
    const ratio = window.devicePixelRatio;
    const wide = Math.round(canvas.clientWidth * ratio);
    const tall = Math.round(canvas.clientHeight * ratio);
    fill(canvas, { width: wide, height: tall }, []);
    const fit = Math.min(wide / shot.width, tall / shot.height) * view.scale;
    const [width, height] = [shot.width * fit, shot.height * fit];
    const [x, y] = [(wide - width) / 2 + view.x * ratio, (tall - height) / 2 + view.y * ratio];
    paint(canvas.getContext('2d'), shot, ready, { x, y, width, height }, ratio);
  }

  function step(by) {
    const next = shown[shown.indexOf(shot) + by];
    if (next) open(next);
  }

  // What lies at (x, y) from the middle of the screen stays there.
  function scaleBy(factor, x = 0, y = 0) {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    const by = scale / view.scale;
    view = scale === 1 ? { scale, x: 0, y: 0 }
      : { scale, x: x - by * (x - view.x), y: y - by * (y - view.y) };
    paintNow();
  }

  const KEYS = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), '+': () => scaleBy(1.5),
    '=': () => scaleBy(1.5), '-': () => scaleBy(1 / 1.5), 0: () => scaleBy(0) };
  dialog.addEventListener('keydown', (event) => {
    if (!KEYS[event.key] || event.target.matches('input')) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  dialog.addEventListener('close', () => {
    find('tools-place').append(find('tools'));
    shot.button.focus();
  });
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    scaleBy(Math.exp(-event.deltaY / 400),
      event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
  }, { passive: false });

  // One pointer drags; two pinch.
  const held = new Map();
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!held.has(event.pointerId)) return;
    const before = held.get(event.pointerId);
    held.set(event.pointerId, [event.clientX, event.clientY]);
    if (held.size === 1) {
      if (view.scale > 1) {
        view.x += event.clientX - before[0];
        view.y += event.clientY - before[1];
        paintNow();
      }
    } else {
      const [[id, other]] = [...held].filter(([id]) => id !== event.pointerId);
      const far = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      if (id) scaleBy(far([event.clientX, event.clientY]) / far(before));
    }
  });
  for (const end of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(end, (event) => held.delete(event.pointerId));
  }
  const BUTTONS = { before: () => step(-1), after: () => step(1), 'zoom-in': () => scaleBy(1.5),
    'zoom-out': () => scaleBy(1 / 1.5), close: () => dialog.close() };
  for (const [id, act] of Object.entries(BUTTONS)) find(id).addEventListener('click', act);
  new ResizeObserver(paintNow).observe(canvas);
  return { open, tell, paint: paintNow };
})();
