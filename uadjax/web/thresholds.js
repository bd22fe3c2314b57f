// Thresholds, labels and warnings.

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

// Returns 'no content, other size', for example.
export const nameWarnings = (warnings) =>
  warnings.map(({ code }) => code.replaceAll('_', ' ')).join(', ');

// Explains the labels, in the report and on the service's page.
export const LABEL_LEGEND =
  'OK: passed. Review: to be checked by a person. NG (not good): rejected.';
