// One verdict per part: a pattern for their names groups the images that show one part.

import { plural } from './dom.js';
import { find, make, makeBadge } from './elements.js';
import { parsePattern } from './pattern.js';
import { emit, items, labelParts, on, selectedModels } from './state.js';

const noPart = () => '';
let [partOf, problem] = [noPart, ''];

export function startGrouping() {
  find('part-pattern').addEventListener('change', () => {
    const pattern = find('part-pattern').value.trim();
    try {
      [partOf, problem] = [pattern ? parsePattern(pattern) : noPart, ''];
    } catch (error) {
      [partOf, problem] = [noPart, error.message];
    }
    emit('items');
  });
  on('items', () => {
    for (const item of items) item.part = partOf(item.name);
  });
}

// Shows the verdict on its part on each card, and the number of parts by label.
export function showParts() {
  const labels = selectedModels.map(labelParts);
  for (const { part, partLine } of items) {
    const partLabels = labels.map((labelOfPart) => labelOfPart.get(part));
    const key = part ? [part, ...partLabels].join() : '';
    if (!partLine || partLine.displayed === key) continue;
    partLine.displayed = key;
    partLine.hidden = !part;
    partLine.replaceChildren('Part ', make('bdi', {}, part), ...partLabels.map((label) =>
      (label ? makeBadge(label) : make('span', { class: 'waiting' }, 'waiting'))));
  }
  const text = problem || (partOf === noPart ? '' : describeParts(labels));
  find('part-hint').hidden = !text;
  if (find('part-hint').textContent !== text) find('part-hint').textContent = text;
}

function describeParts(labels) {
  const counts = labels.map((labelOfPart, i) => {
    const values = [...labelOfPart.values()];
    const count = (label) => values.filter((value) => value === label).length;
    const others = [['failed', 'failed'], ['', 'waiting']].filter(([label]) => count(label))
      .map(([label, name]) => `, ${count(label)} ${name}`);
    return `${labels.length > 1 ? `${selectedModels[i]}: ` : ''}${count('OK')} OK, `
      + `${count('review')} review, ${count('NG')} NG${others.join('')}`;
  });
  const numOther = items.filter(({ part }) => !part).length;
  return `${plural(labels[0].size, 'part')}: ${counts.join('; ')}.`
    + (numOther ? ` No match for ${plural(numOther, 'image')}.` : '');
}
