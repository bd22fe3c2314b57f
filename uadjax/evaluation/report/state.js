// State of the report: its data, the thresholds, and the counts and rates that follow from them.

const read = (id) => JSON.parse(find(id).textContent);
const report = read('report');

const images = report.images.map((image) => ({ ...image, score: Number(image.score) }));
const isGoodType = new Map(report.defect_types.map(({ name, good }) => [name, good]));

// Scores of each defect type, sorted for binary search. Held-out images of the training set have a
// row of their own, and are not test images.
const sortScores = (scores) => Float64Array.from(scores).sort();
const defectTypes = report.defect_types.map(({ name, good }) => {
  const ofType = images.filter((image) => image.defect === name);
  return {
    name,
    good,
    heldOut: false,
    scores: sortScores(ofType.map(({ score }) => score)),
    scoresWithWarnings: sortScores(
      ofType.filter(({ warnings }) => warnings.length).map(({ score }) => score)),
  };
});
const heldOutTypes = [{
  name: 'good, held out',
  good: true,
  heldOut: true,
  scores: sortScores(report.held_out.map(Number)),
  scoresWithWarnings: sortScores([]),
}].filter(({ scores }) => scores.length);

const calibrated = {
  reviewThreshold: Number(report.thresholds.review_threshold),
  imageThreshold: Number(report.thresholds.image_threshold),
};
const calibratedPixelThreshold = Number(report.thresholds.pixel_threshold);
const thresholds = { ...calibrated };
const listeners = [];

// Calls a listener now and after every change of a threshold. Its argument is false while the
// threshold is still being dragged.
function onThresholds(listener) {
  listeners.push(listener);
  listener(true);
}

function setThresholds(changes, isFinal = true) {
  changeThresholds(thresholds, changes);
  for (const listener of listeners) listener(isFinal);
}

function countAbove(scores, threshold) {
  let [low, high] = [0, scores.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] <= threshold) low = middle + 1;
    else high = middle;
  }
  return scores.length - low;
}

// An image with warnings is for review even if its score is OK.
function countLabels({ scores, scoresWithWarnings }) {
  const { reviewThreshold } = thresholds;
  const numNotOk = countAbove(scores, reviewThreshold)
    + scoresWithWarnings.length - countAbove(scoresWithWarnings, reviewThreshold);
  const numNg = countAbove(scores, thresholds.imageThreshold);
  return { images: scores.length, OK: scores.length - numNotOk, review: numNotOk - numNg,
    NG: numNg };
}

// Sums over all good test images, or over all defective ones.
function sumCounts(isGood) {
  const sum = { images: 0, OK: 0, review: 0, NG: 0 };
  for (const defectType of defectTypes.filter(({ good }) => good === isGood)) {
    for (const [name, count] of Object.entries(countLabels(defectType))) sum[name] += count;
  }
  return sum;
}

// Images to review are neither found nor missed.
function computeRates() {
  const [good, defective] = [sumCounts(true), sumCounts(false)];
  const ratio = (part, total) => (total ? part / total : null);
  return {
    good,
    defective,
    falseAlarmRate: ratio(good.NG, good.images),
    missRate: ratio(defective.OK, defective.images),
    recall: ratio(defective.NG, defective.images),
    precision: ratio(defective.NG, defective.NG + good.NG),
    f1: ratio(2 * defective.NG, defective.NG + good.NG + defective.images),
  };
}
