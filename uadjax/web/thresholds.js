// Thresholds and labels.

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

// `score` is NaN, or null in JSON, if it is not a number.
export function labelScore(score, { reviewThreshold, imageThreshold }) {
  if (score === null) return 'NG';
  return score <= reviewThreshold ? 'OK' : score <= imageThreshold ? 'review' : 'NG';
}
