// Scores of every kind of image under two thresholds that can be dragged, and three curves.

const axis = (() => {
  const { edges, log } = report.axis;
  const [forward, back] = log ? [Math.log, Math.exp] : [(v) => v, (v) => v];
  const [low, high] = [forward(edges[0]), forward(edges.at(-1))];
  const place = (value) => {
    const at = value <= 0 && log ? 0 : (forward(value) - low) / (high - low);
    return Math.min(1, Math.max(0, at));
  };
  const value = (share) => back(low + Math.min(1, Math.max(0, share)) * (high - low));
  return { edges, log, forward, place, value };
})();

// Round numbers, at most so many.
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough) * unit;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

function scoreTicks(width) {
  const [low, high] = [axis.edges[0], axis.edges.at(-1)];
  const most = Math.max(2, Math.floor(width / 70));
  if (axis.log) {
    for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        found.push(...steps.map((step) => step * 10 ** e).filter((v) => v >= low && v <= high));
      }
      if (found.length <= most && found.length > 1) return found;
    }
  }
  return ticks(low, high, most);
}

function binned(scores) {
  const counts = new Array(axis.edges.length - 1).fill(0);
  let bin = 0;
  for (const score of scores) {
    while (bin < counts.length - 1 && score > axis.edges[bin + 1]) bin++;
    counts[bin]++;
  }
  return counts;
}

const HANDLES = { ng: { name: 'NG', y: 12 }, review: { name: 'Review', y: 37 } };

function drawHistogram(frame, hint) {
  const rows = [...heldOut, ...kinds].map((kind) => ({ ...kind, counts: binned(kind.scores) }));
  const handles = Object.fromEntries(Object.keys(HANDLES).map((key) => [key, makeHandle(key)]));
  let box;

  function lay() {
    const width = frame.clientWidth;
    if (!width) return;
    const beside = width >= 560;  // Else names stand above their strips.
    const left = beside ? Math.min(190, 24 + 7.2 * Math.max(...rows.map((r) => r.name.length))) : 8;
    const tall = beside ? 36 : 52;
    box = { left, top: 56, width: width - left - 14, height: rows.length * tall };
    const full = box.top + box.height + 28;
    const svg = draw('svg', { width, height: full, viewBox: `0 0 ${width} ${full}` });
    const clips = draw('defs');
    for (const key of ['above', 'below']) {
      clips.append(draw('clipPath', { id: key },
        draw('rect', { y: 0, height: full, id: `${key}-rect` })));
    }
    const zone = draw('rect', { id: 'zone', y: box.top - 8, height: box.height + 8 });
    const base = (i) => box.top + (i + 1) * tall;
    svg.append(clips, zone, ...rows.map((row, i) => strip(row, base(i))));
    for (const tick of scoreTicks(box.width)) {
      const x = box.left + box.width * axis.place(tick);
      const y = box.top + box.height;
      svg.append(draw('line', { x1: x, x2: x, y1: y, y2: y + 4, class: 'axis' }),
        draw('text', { x, y: y + 18, class: 'tick' }, number(tick)));
    }
    svg.append(handles.ng, handles.review);  // Its grip covers the other's line.
    svg.append(...rows.map((row, i) => nameOf(row, base(i), beside)));
    frame.replaceChildren(svg);
    place();
  }

  function nameOf({ name, counted }, y, beside) {
    const letters = Math.floor((beside ? box.left - 16 : box.width) / 7);
    const short = name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
    const at = beside ? { x: box.left - 10, y: y - 8 } : { x: box.left, y: y - 32 };
    const looks = `name${beside ? ' end' : ''}${counted ? '' : ' held-out'}`;
    return draw('text', { ...at, class: looks, 'aria-hidden': 'true' }, short);
  }

  function strip(row, y) {
    const most = Math.max(...row.counts, 1);
    const x = (value) => (box.left + box.width * axis.place(value)).toFixed(1);
    const path = row.counts.map((count, i) => {
      if (!count) return '';
      const top = y - Math.max(26 * count / most, 4);  // One among thousands is still seen.
      return `M${x(axis.edges[i])} ${y}V${top.toFixed(1)}H${x(axis.edges[i + 1])}V${y}z`;
    }).join('');
    const kind = row.good ? 'good' : 'bad';
    const clip = `url(#${row.good ? 'above' : 'below'})`;
    const looks = row.counted ? 'strip' : 'strip held-out';
    const group = draw('g', { class: looks, 'aria-hidden': 'true' },
      draw('line', { x1: box.left, x2: box.left + box.width, y1: y, y2: y, class: 'base' }),
      draw('path', { d: path, class: `bars ${kind}` }),
      draw('path', { d: path, class: `bars ${kind} wrong`, 'clip-path': clip }));
    const hit = draw('rect',
      { x: box.left, y: y - 30, width: box.width, height: 30, class: 'hit' });
    hit.addEventListener('pointermove', (event) => {
      const value = valueAt(event.clientX);
      const i = Math.max(0, axis.edges.findIndex((edge) => edge >= value) - 1);
      const some = row.counts[i] === 1 ? '1 image' : `${row.counts[i]} images`;
      const [from, to] = [axis.edges[i], axis.edges[i + 1]].map((edge) => number(edge));
      hint.textContent = `${row.name}: ${some} of ${row.scores.length} between ${from} and ${to}`;
    });
    hit.addEventListener('pointerleave', explain);
    group.append(hit);
    return group;
  }

  function explain() {
    hint.replaceChildren(
      make('span', { class: 'swatch good' }), 'good ', make('span', { class: 'swatch good wrong' }),
      'good but NG ', make('span', { class: 'swatch bad' }), 'defective ',
      make('span', { class: 'swatch bad wrong' }), 'defective but OK',
      make('span', {}, 'Drag a threshold, or move it by arrow keys.'));
  }

  const valueAt = (clientX) => {
    const at = (clientX - frame.getBoundingClientRect().left - box.left) / box.width;
    return Number(axis.value(at).toPrecision(6));
  };

  function makeHandle(key) {
    const handle = draw('g', {
      id: `handle-${key}`, class: `handle ${key}`, role: 'slider', tabindex: 0,
      'aria-label': `${HANDLES[key].name} threshold`, 'aria-orientation': 'horizontal',
      'aria-valuemin': axis.edges[0], 'aria-valuemax': axis.edges.at(-1),
    }, draw('line', { class: 'reach' }), draw('line', { class: 'line' }),
      draw('rect', { class: 'grip', rx: 11, height: 22 }), draw('text', { class: 'grip-text' }));
    let held = 0;  // How far beside the line it was taken: it must not jump.
    const to = (event, settled) => moveTo({ [key]: valueAt(event.clientX - held) }, settled);
    handle.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      handle.setPointerCapture(event.pointerId);
      const frameLeft = frame.getBoundingClientRect().left;
      held = event.clientX - frameLeft - box.left - box.width * axis.place(limits[key]);
      handle.focus({ focusVisible: false });
      event.preventDefault();
    });
    handle.addEventListener('pointermove', (event) => {
      if (handle.hasPointerCapture(event.pointerId)) to(event, false);
    });
    handle.addEventListener('lostpointercapture', () => moveTo({ [key]: limits[key] }));
    handle.addEventListener('keydown', (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10,
        PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
      if (steps === undefined) return;
      event.preventDefault();
      const share = axis.place(limits[key]) + steps * (event.shiftKey ? 10 : 1) / 400;
      moveTo({ [key]: Number(axis.value(share).toPrecision(6)) });
    });
    return handle;
  }

  function place() {
    if (!box) return;
    const x = (value) => box.left + box.width * axis.place(value);
    const bottom = box.top + box.height;
    for (const [key, { name, y }] of Object.entries(HANDLES)) {
      const [reach, line, grip, text] = handles[key].children;
      const at = x(limits[key]);
      for (const one of [reach, line]) fill(one, { x1: at, x2: at, y1: y + 11, y2: bottom }, []);
      text.textContent = `${name} > ${number(limits[key])}`;
      const wide = 7 * text.textContent.length + 20;
      const middle = Math.min(box.left + box.width + 12 - wide / 2, Math.max(wide / 2 + 1, at));
      fill(grip, { x: middle - wide / 2, width: wide, y: y - 11 }, []);
      fill(text, { x: middle, y: y + 4.5 }, []);
      const value = { 'aria-valuenow': limits[key], 'aria-valuetext': number(limits[key]) };
      fill(handles[key], value, []);
    }
    const [review, ng] = [x(limits.review), x(limits.ng)];
    fill(find('zone'), { x: review, width: Math.max(0, ng - review) }, []);
    fill(find('above-rect'), { x: ng, width: box.left + box.width + 2 - ng }, []);
    fill(find('below-rect'), { x: box.left - 2, width: review - box.left + 2 }, []);
  }

  explain();
  new ResizeObserver(lay).observe(frame);
  lay();
  follow(place);
}

// A curve's vertices, operating points and what they say; images follow the thresholds.
const PANELS = {
  roc: { title: 'ROC', x: 'false alarms, of all good', y: 'found, of all defective',
    at: ({ alarms, recall }) => [alarms, recall] },
  pr: { title: 'Precision and recall', x: 'found, of all defective', y: 'right, of all alarms',
    at: ({ recall, precision }) => [recall, precision] },
  pro: { title: 'PRO', x: 'false alarms, of all good pixels', y: 'found, mean over regions' },
};

function drawCurve(frame, key) {
  const { lines, missing } = report.curves[key];
  const panel = PANELS[key];
  frame.append(make('h3', {}, panel.title));
  if (!lines.length) {
    frame.append(make('p', { class: 'sentence' }, missing.join(' ')));
    return;
  }
  const holder = make('div', { class: 'chart' });
  const list = make('ul', { class: 'legend' });
  frame.append(holder, list);
  const points = (line) =>
    (line.name === 'Images' ? panel.at(rates()) : line.point) ?? [null, null];
  const until = key === 'pro' ? Math.min(1, Math.max(1.15 * report.curves.pro_limit,
    ...lines.map((line) => 1.1 * (line.point?.[0] ?? 0)))) : 1;
  let marks;

  function lay() {
    const width = holder.clientWidth;
    if (!width) return;
    const box = { left: 62, top: 10, width: width - 86, height: Math.min(300, 0.78 * width) };
    const [x, y] = [(v) => box.left + box.width * v / until, (v) => box.top + box.height * (1 - v)];
    const full = box.top + box.height + 44;
    const label = [panel.title, ...lines.map((line) => `${line.name} ${line.area}`)].join(', ');
    const svg = draw('svg', { width, height: full, viewBox: `0 0 ${width} ${full}`, role: 'img',
      'aria-label': label });
    for (const share of ticks(0, until, 5)) {
      const [at, told] = [x(share), `${number(100 * share)} %`];
      svg.append(draw('line', { x1: at, x2: at, y1: y(1), y2: y(0), class: 'grid' }),
        draw('text', { x: at, y: y(0) + 18, class: 'tick' }, told));
    }
    for (const share of ticks(0, 1, 5)) {
      const [at, told] = [y(share), `${number(100 * share)} %`];
      svg.append(draw('line', { x1: x(0), x2: x(until), y1: at, y2: at, class: 'grid' }),
        draw('text', { x: box.left - 6, y: at + 4, class: 'tick end' }, told));
    }
    svg.append(
      draw('text', { x: x(until / 2), y: full - 4, class: 'tick' }, panel.x),
      draw('text', { x: -y(0.5), y: 11, transform: 'rotate(-90)', class: 'tick' }, panel.y));
    const clip = `inside-${key}`;
    svg.append(draw('clipPath', { id: clip }, draw('rect',
      { x: x(0) - 2, y: y(1) - 3, width: box.width + 4, height: box.height + 6 })));
    if (key !== 'pr') {
      svg.append(draw('line', { x1: x(0), y1: y(0), x2: x(until), y2: y(until), class: 'chance' }));
    }
    for (const line of lines) {
      const d = line.x.map((v, i) => `${x(v).toFixed(1)} ${y(line.y[i]).toFixed(1)}`);
      svg.append(draw('path', { d: `M${d.join('L')}`, class: `curve ${line.name}`,
        'clip-path': `url(#${clip})` }));
    }
    marks = lines.map((line) => {
      const mark = line.name === 'Images' ? draw('circle', { r: 6.5 })
        : draw('rect', { width: 11, height: 11 });
      return fill(mark, { class: `mark ${line.name}` }, []);
    });
    const tip = draw('text', { class: 'tip' });
    const dot = draw('circle', { r: 4, class: 'dot' });
    svg.append(...marks, dot, tip);
    svg.addEventListener('pointermove', (event) => hover(event, svg, box, x, y, tip, dot));
    svg.addEventListener('pointerleave', () => {
      for (const one of [tip, dot]) one.classList.remove('on');
    });
    holder.replaceChildren(svg);
    holder.place = () => lines.forEach((line, i) => {
      const [px, py] = points(line);
      marks[i].classList.toggle('gone', px === null || py === null);
      const [cx, cy] = [x(px ?? 0), y(py ?? 0)];
      fill(marks[i], { cx, cy, x: cx - 5.5, y: cy - 5.5 }, []);
    });
    tell();
  }

  function hover(event, svg, box, x, y, tip, dot) {
    const corner = svg.getBoundingClientRect();
    const [mx, my] = [event.clientX - corner.left, event.clientY - corner.top];
    let best = { far: Infinity };
    for (const line of lines) {
      line.x.forEach((v, i) => {
        const far = Math.hypot(x(v) - mx, y(line.y[i]) - my);
        if (v <= until && far < best.far) best = { far, line, v, w: line.y[i] };
      });
    }
    const [px, py] = [x(best.v), y(best.w)];
    tip.textContent = `${best.line.name}: ${says(key, best.v, best.w)}`;
    fill(dot, { cx: px, cy: py }, []);
    [tip, dot].forEach((one) => one.classList.add('on'));
    const half = tip.getComputedTextLength() / 2;
    const middle = Math.min(box.left + box.width - half, Math.max(box.left + half, px));
    fill(tip, { x: middle, y: py > box.top + 40 ? py - 14 : py + 24 }, []);
  }

  function tell() {
    holder.place?.();
    list.replaceChildren(...lines.map((line) => {
      const [px, py] = points(line);
      const told = px === null || py === null ? 'nothing exceeds the threshold'
        : `at the threshold ${says(key, px, py)}`;
      return make('li', {}, make('span', { class: `sample ${line.name}` }),
        make('strong', {}, `${line.name} ${line.area}`), make('span', {}, told));
    }), ...missing.map((sentence) => make('li', {}, make('span', {}, sentence))));
  }

  new ResizeObserver(lay).observe(holder);
  lay();
  follow(tell);
}

function says(key, x, y) {
  if (key === 'pr') return `${percent(y)} of alarms right, ${percent(x)} found`;
  return `${percent(y)} found, ${percent(x)} false alarms`;
}
