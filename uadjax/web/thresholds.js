// Thresholds, labels, warnings and the order of images, by the rules of `uadjax.model.calibration`.

// The review threshold never exceeds the image threshold: changing either one moves the other.
export function changeThresholds(thresholds, changes) {
  Object.assign(thresholds, changes);
  const { reviewThreshold, imageThreshold } = thresholds;
  if ('imageThreshold' in changes) {
    thresholds.reviewThreshold = Math.min(reviewThreshold, imageThreshold);
  } else {
    thresholds.imageThreshold = Math.max(imageThreshold, reviewThreshold);
  }
}

// `score` is NaN, or null in JSON, if it is not a number. An image with warnings is never OK.
export function labelImage({ score, warnings }, { reviewThreshold, imageThreshold }) {
  if (score === null || !(score <= imageThreshold)) return 'NG';
  return score <= reviewThreshold && !warnings.length ? 'OK' : 'review';
}

// Returns the value of the anomaly map above which pixels belong to the regions of an image. Unless
// the image is OK, it is below the largest value, `peak`.
export function regionThreshold(label, peak, thresholds) {
  const { imageThreshold, reviewThreshold, pixelThreshold } = thresholds;
  if (label === 'OK') return pixelThreshold;
  const hasBand = reviewThreshold > 0 && reviewThreshold < imageThreshold
    && imageThreshold < Infinity;
  const isScaled = label === 'review' && hasBand;
  const scaled = isScaled ? pixelThreshold * (reviewThreshold / imageThreshold) : pixelThreshold;
  return Math.min(pixelThreshold, scaled, peak - 0.05 * Math.max(Math.abs(peak), 1e-30));
}

// Returns whether a verdict is wrong; review is not. An image of unknown class counts as good.
export const isWrong = (label, isDefective = false) => label === (isDefective ? 'OK' : 'NG');

// Compares images to sort the worst first: wrong verdicts, then the distance of the score to the
// image threshold, on the wrong side of it first.
export function compareWorst(a, b, thresholds) {
  const [first, second] = [a, b].map((image) => {
    const score = Number.isNaN(image.score ?? NaN) ? Infinity : image.score;
    const { imageThreshold } = thresholds;
    const distance = score === imageThreshold ? 0 : score - imageThreshold;
    return { isCorrect: !isWrong(labelImage(image, thresholds), image.isDefective),
      key: image.isDefective ? distance : -distance };
  });
  return first.isCorrect - second.isCorrect || (first.key > second.key) - (first.key < second.key);
}

// Returns 'no content, other size', for example.
export const nameWarnings = (warnings) =>
  warnings.map(({ code }) => code.replaceAll('_', ' ')).join(', ');

// Explains the labels, in the report and on the service's page.
export const LABEL_LEGEND =
  'OK: passed. Review: to be checked by a person. NG (not good): rejected.';
