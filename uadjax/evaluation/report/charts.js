// Histograms of scores by defect type with draggable thresholds; ROC, precision-recall and PRO
// curves.

const axis = (() => {
  const { edges, log } = report.axis;
  const [forward, inverse] = log ? [Math.log, Math.exp] : [(v) => v, (v) => v];
  const [low, high] = [forward(edges[0]), forward(edges.at(-1))];
  const toShare = (value) => {
    const share = value <= 0 && log ? 0 : (forward(value) - low) / (high - low);
    return Math.min(1, Math.max(0, share));
  };
  const toValue = (share) => inverse(low + Math.min(1, Math.max(0, share)) * (high - low));
  return { edges, log, forward, toShare, toValue };
})();

// Returns round numbers, about `maxCount` of them at most.
function chooseTicks(low, high, maxCount) {
  const minStep = (high - low) / maxCount;
  const unit = 10 ** Math.floor(Math.log10(minStep));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= minStep) * unit;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

function chooseScoreTicks(width) {
  const [low, high] = [axis.edges[0], axis.edges.at(-1)];
  const maxCount = Math.max(2, Math.floor(width / 70));
  if (axis.log) {
    for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]]) {
      const ticks = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        ticks.push(...steps.map((step) => step * 10 ** e).filter((v) => v >= low && v <= high));
      }
      if (ticks.length <= maxCount && ticks.length > 1) return ticks;
    }
  }
  return chooseTicks(low, high, maxCount);
}

function countByBin(sortedScores) {
  const counts = new Array(axis.edges.length - 1).fill(0);
  let bin = 0;
  for (const score of sortedScores) {
    while (bin < counts.length - 1 && score > axis.edges[bin + 1]) bin++;
    counts[bin]++;
  }
  return counts;
}

const HANDLES = {
  imageThreshold: { id: 'image-threshold-handle', name: 'Image threshold', label: 'NG', y: 12 },
  reviewThreshold:
    { id: 'review-threshold-handle', name: 'Review threshold', label: 'Review', y: 37 },
};

function drawHistogram(frame, hint) {
  const rows = [...heldOutTypes, ...defectTypes].map((defectType) =>
    ({ ...defectType, counts: countByBin(defectType.scores) }));
  const handles = Object.fromEntries(Object.keys(HANDLES).map((key) => [key, makeHandle(key)]));
  let box;

  function draw() {
    const width = frame.clientWidth;
    if (!width) return;
    const namesBeside = width >= 560;  // On narrow screens names stand above their strips.
    const longestName = Math.max(...rows.map(({ name }) => name.length));
    const left = namesBeside ? Math.min(190, 24 + 7.2 * longestName) : 8;
    const rowHeight = namesBeside ? 36 : 52;
    box = { left, top: 56, width: width - left - 14, height: rows.length * rowHeight };
    const height = box.top + box.height + 28;
    const svg = makeSvg('svg', { width, height, viewBox: `0 0 ${width} ${height}` });
    const clips = makeSvg('defs');
    for (const key of ['above', 'below']) {
      clips.append(makeSvg('clipPath', { id: key },
        makeSvg('rect', { y: 0, height, id: `${key}-rect` })));
    }
    const zone = makeSvg('rect', { id: 'zone', y: box.top - 8, height: box.height + 8 });
    const base = (i) => box.top + (i + 1) * rowHeight;
    svg.append(clips, zone, ...rows.map((row, i) => makeStrip(row, base(i))));
    for (const tick of chooseScoreTicks(box.width)) {
      const x = box.left + box.width * axis.toShare(tick);
      const y = box.top + box.height;
      svg.append(makeSvg('line', { x1: x, x2: x, y1: y, y2: y + 4, class: 'axis' }),
        makeSvg('text', { x, y: y + 18, class: 'tick' }, formatNumber(tick)));
    }
    // The grip of the review threshold comes last: it covers the line of the image threshold.
    svg.append(handles.imageThreshold, handles.reviewThreshold);
    svg.append(...rows.map((row, i) => makeName(row, base(i), namesBeside)));
    frame.replaceChildren(svg);
    update();
  }

  function makeName({ name, heldOut }, y, namesBeside) {
    const maxLetters = Math.floor((namesBeside ? box.left - 16 : box.width) / 7);
    const shortName = name.length > maxLetters ? `${name.slice(0, maxLetters - 1)}…` : name;
    const position = namesBeside ? { x: box.left - 10, y: y - 8 } : { x: box.left, y: y - 32 };
    const classes = `name${namesBeside ? ' end' : ''}${heldOut ? ' held-out' : ''}`;
    return makeSvg('text', { ...position, class: classes, 'aria-hidden': 'true' }, shortName);
  }

  function makeStrip(row, y) {
    const maxCount = Math.max(...row.counts, 1);
    const x = (value) => (box.left + box.width * axis.toShare(value)).toFixed(1);
    const path = row.counts.map((count, i) => {
      if (!count) return '';
      // The minimum height keeps a single image visible among thousands.
      const top = y - Math.max(26 * count / maxCount, 4);
      return `M${x(axis.edges[i])} ${y}V${top.toFixed(1)}H${x(axis.edges[i + 1])}V${y}z`;
    }).join('');
    const className = row.good ? 'good' : 'defective';
    // Misclassified scores: good ones above the image threshold, defective ones below the review
    // threshold.
    const clip = `url(#${row.good ? 'above' : 'below'})`;
    const group = makeSvg('g', { class: row.heldOut ? 'held-out' : '', 'aria-hidden': 'true' },
      makeSvg('line', { x1: box.left, x2: box.left + box.width, y1: y, y2: y, class: 'base' }),
      makeSvg('path', { d: path, class: `bars ${className}` }),
      makeSvg('path', { d: path, class: `bars ${className} misclassified`, 'clip-path': clip }));
    const hitArea = makeSvg('rect',
      { x: box.left, y: y - 30, width: box.width, height: 30, class: 'hit-area' });
    hitArea.addEventListener('pointermove', (event) => {
      const value = valueAt(event.clientX);
      const i = Math.max(0, axis.edges.findIndex((edge) => edge >= value) - 1);
      const [from, to] = [axis.edges[i], axis.edges[i + 1]].map((edge) => formatNumber(edge));
      hint.textContent = `${row.name}: ${row.counts[i]} of ${row.scores.length} images between `
        + `${from} and ${to}`;
    });
    hitArea.addEventListener('pointerleave', showLegend);
    group.append(hitArea);
    return group;
  }

  function showLegend() {
    hint.replaceChildren(
      make('span', { class: 'swatch good' }), 'good ',
      make('span', { class: 'swatch good misclassified' }), 'good but NG ',
      make('span', { class: 'swatch defective' }), 'defective ',
      make('span', { class: 'swatch defective misclassified' }), 'defective but OK',
      make('span', {}, 'Drag a threshold, or move it with the arrow keys.'));
  }

  const valueAt = (clientX) => {
    const share = (clientX - frame.getBoundingClientRect().left - box.left) / box.width;
    return Number(axis.toValue(share).toPrecision(6));
  };

  function makeHandle(key) {
    const { id, name } = HANDLES[key];
    const isReview = key === 'reviewThreshold';
    const handle = makeSvg('g', {
      id, class: `handle${isReview ? ' review-threshold' : ''}`, role: 'slider', tabindex: 0,
      'aria-label': name, 'aria-orientation': 'horizontal',
      'aria-valuemin': axis.edges[0], 'aria-valuemax': axis.edges.at(-1),
    }, makeSvg('line', { class: 'grab-area' }), makeSvg('line', { class: 'line' }),
      makeSvg('rect', { class: 'grip', rx: 11, height: 22 }),
      makeSvg('text', { class: 'grip-text' }));
    let dragOffset = 0;  // Distance from the line to where it was grabbed, so that it never jumps.
    const drag = (event, isFinal) =>
      setThresholds({ [key]: valueAt(event.clientX - dragOffset) }, isFinal);
    handle.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      handle.setPointerCapture(event.pointerId);
      const frameLeft = frame.getBoundingClientRect().left;
      dragOffset =
        event.clientX - frameLeft - box.left - box.width * axis.toShare(thresholds[key]);
      handle.focus({ focusVisible: false });
      event.preventDefault();
    });
    handle.addEventListener('pointermove', (event) => {
      if (handle.hasPointerCapture(event.pointerId)) drag(event, false);
    });
    handle.addEventListener('lostpointercapture', () => setThresholds({ [key]: thresholds[key] }));
    handle.addEventListener('keydown', (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10,
        PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
      if (steps === undefined) return;
      event.preventDefault();
      const share = axis.toShare(thresholds[key]) + steps * (event.shiftKey ? 10 : 1) / 400;
      setThresholds({ [key]: Number(axis.toValue(share).toPrecision(6)) });
    });
    return handle;
  }

  function update() {
    if (!box) return;
    const x = (value) => box.left + box.width * axis.toShare(value);
    const bottom = box.top + box.height;
    for (const [key, { label, y }] of Object.entries(HANDLES)) {
      const [grabArea, line, grip, text] = handles[key].children;
      const value = thresholds[key];
      const lineX = x(value);
      for (const element of [grabArea, line]) {
        configure(element, { x1: lineX, x2: lineX, y1: y + 11, y2: bottom });
      }
      text.textContent = `${label} > ${formatNumber(value)}`;
      const width = 7 * text.textContent.length + 20;
      const middle =
        Math.min(box.left + box.width + 12 - width / 2, Math.max(width / 2 + 1, lineX));
      configure(grip, { x: middle - width / 2, width, y: y - 11 });
      configure(text, { x: middle, y: y + 4.5 });
      configure(handles[key], { 'aria-valuenow': value, 'aria-valuetext': formatNumber(value) });
    }
    const [reviewX, imageX] = [x(thresholds.reviewThreshold), x(thresholds.imageThreshold)];
    configure(find('zone'), { x: reviewX, width: Math.max(0, imageX - reviewX) });
    configure(find('above-rect'), { x: imageX, width: box.left + box.width + 2 - imageX });
    configure(find('below-rect'), { x: box.left - 2, width: reviewX - box.left + 2 });
  }

  showLegend();
  new ResizeObserver(draw).observe(frame);
  draw();
  onThresholds(update);
}

// The operating points of image curves follow the thresholds.
const PANELS = {
  roc: { title: 'ROC', x: 'false-alarm rate', y: 'recall',
    operatingPoint: ({ falseAlarmRate, recall }) => [falseAlarmRate, recall] },
  pr: { title: 'Precision and recall', x: 'recall', y: 'precision',
    operatingPoint: ({ recall, precision }) => [recall, precision] },
  pro: { title: 'PRO', x: 'false-positive rate of pixels', y: 'mean overlap of regions' },
};

function drawCurve(frame, key) {
  const { lines, missing } = report.curves[key];
  const panel = PANELS[key];
  frame.append(make('h3', {}, panel.title));
  if (!lines.length) {
    frame.append(make('p', { class: 'hint' }, missing.join(' ')));
    return;
  }
  const holder = make('div', { class: 'chart' });
  const legend = make('ul', { class: 'legend' });
  frame.append(holder, legend);
  const operatingPoint = (line) =>
    (line.name === 'Images' ? panel.operatingPoint(computeRates()) : line.point) ?? [null, null];
  const maxX = key === 'pro' ? Math.min(1, Math.max(1.15 * report.curves.pro_limit,
    ...lines.map((line) => 1.1 * (line.point?.[0] ?? 0)))) : 1;
  let marks;

  function draw() {
    const width = holder.clientWidth;
    if (!width) return;
    const box = { left: 62, top: 10, width: width - 86, height: Math.min(300, 0.78 * width) };
    const [x, y] = [(v) => box.left + box.width * v / maxX, (v) => box.top + box.height * (1 - v)];
    const height = box.top + box.height + 44;
    const description = [panel.title, ...lines.map(({ name, area }) => `${name} ${area}`)];
    const svg = makeSvg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
      'aria-label': description.join(', ') });
    for (const share of chooseTicks(0, maxX, 5)) {
      const [tickX, text] = [x(share), `${formatNumber(100 * share)} %`];
      svg.append(makeSvg('line', { x1: tickX, x2: tickX, y1: y(1), y2: y(0), class: 'grid' }),
        makeSvg('text', { x: tickX, y: y(0) + 18, class: 'tick' }, text));
    }
    for (const share of chooseTicks(0, 1, 5)) {
      const [tickY, text] = [y(share), `${formatNumber(100 * share)} %`];
      svg.append(makeSvg('line', { x1: x(0), x2: x(maxX), y1: tickY, y2: tickY, class: 'grid' }),
        makeSvg('text', { x: box.left - 6, y: tickY + 4, class: 'tick end' }, text));
    }
    svg.append(
      makeSvg('text', { x: x(maxX / 2), y: height - 4, class: 'tick' }, panel.x),
      makeSvg('text', { x: -y(0.5), y: 11, transform: 'rotate(-90)', class: 'tick' }, panel.y));
    const clip = `inside-${key}`;
    svg.append(makeSvg('clipPath', { id: clip }, makeSvg('rect',
      { x: x(0) - 2, y: y(1) - 3, width: box.width + 4, height: box.height + 6 })));
    if (key !== 'pr') {
      svg.append(
        makeSvg('line', { x1: x(0), y1: y(0), x2: x(maxX), y2: y(maxX), class: 'chance' }));
    }
    for (const line of lines) {
      const d = line.x.map((v, i) => `${x(v).toFixed(1)} ${y(line.y[i]).toFixed(1)}`);
      svg.append(makeSvg('path', { d: `M${d.join('L')}`, class: `curve ${line.name}`,
        'clip-path': `url(#${clip})` }));
    }
    marks = lines.map(({ name }) => configure(
      name === 'Images' ? makeSvg('circle', { r: 6.5 })
        : makeSvg('rect', { width: 11, height: 11 }), { class: `mark ${name}` }));
    const tooltip = makeSvg('text', { class: 'tooltip' });
    const dot = makeSvg('circle', { r: 4, class: 'dot' });
    svg.append(...marks, dot, tooltip);
    svg.addEventListener('pointermove', (event) =>
      showTooltip(event, svg, box, x, y, tooltip, dot));
    svg.addEventListener('pointerleave', () => {
      for (const element of [tooltip, dot]) element.classList.remove('visible');
    });
    holder.replaceChildren(svg);
    holder.placeMarks = () => lines.forEach((line, i) => {
      const [px, py] = operatingPoint(line);
      marks[i].classList.toggle('hidden', px === null || py === null);
      const [cx, cy] = [x(px ?? 0), y(py ?? 0)];
      configure(marks[i], { cx, cy, x: cx - 5.5, y: cy - 5.5 });
    });
    update();
  }

  // Shows the values of the nearest vertex of a curve.
  function showTooltip(event, svg, box, x, y, tooltip, dot) {
    const corner = svg.getBoundingClientRect();
    const [mouseX, mouseY] = [event.clientX - corner.left, event.clientY - corner.top];
    let nearest = { distance: Infinity };
    for (const { name, x: xs, y: ys } of lines) {
      xs.forEach((vx, i) => {
        const distance = Math.hypot(x(vx) - mouseX, y(ys[i]) - mouseY);
        if (vx <= maxX && distance < nearest.distance) nearest = { distance, name, vx, vy: ys[i] };
      });
    }
    const [px, py] = [x(nearest.vx), y(nearest.vy)];
    tooltip.textContent = `${nearest.name}: ${describePoint(key, nearest.vx, nearest.vy)}`;
    configure(dot, { cx: px, cy: py });
    for (const element of [tooltip, dot]) element.classList.add('visible');
    const half = tooltip.getComputedTextLength() / 2;
    const middle = Math.min(box.left + box.width - half, Math.max(box.left + half, px));
    configure(tooltip, { x: middle, y: py > box.top + 40 ? py - 14 : py + 24 });
  }

  function update() {
    holder.placeMarks?.();
    legend.replaceChildren(...lines.map((line) => {
      const [px, py] = operatingPoint(line);
      const text = px === null || py === null ? 'nothing exceeds the threshold'
        : `at the threshold ${describePoint(key, px, py)}`;
      return make('li', {}, make('span', { class: `sample ${line.name}` }),
        make('strong', {}, `${line.name} ${line.area}`), make('span', {}, text));
    }), ...missing.map((sentence) => make('li', {}, make('span', {}, sentence))));
  }

  new ResizeObserver(draw).observe(holder);
  draw();
  onThresholds(update);
}

function describePoint(key, x, y) {
  const [percentX, percentY] = [formatPercent(x), formatPercent(y)];
  if (key === 'pr') return `precision ${percentY}, recall ${percentX}`;
  return `${key === 'pro' ? 'overlap' : 'recall'} ${percentY}, false alarms ${percentX}`;
}
