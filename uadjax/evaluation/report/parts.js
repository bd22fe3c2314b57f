// Verdicts on parts, if images are grouped: the worst of the images of each part.

// A part is defective if any of its images is.
const parts = [...groupByPart(images)].map(([part, ofPart]) => ({
  part,
  images: ofPart,
  isDefective: ofPart.some(({ defect }) => !isGoodType.get(defect)),
  label: '',
}));
const partsByName = new Map(parts.map((part) => [part.part, part]));

// This listener is the first one, so that the others find the labels up to date.
onThresholds(() => {
  for (const part of parts) {
    part.label = worstLabel(part.images.map((image) => labelImage(image, thresholds)));
  }
});

// Describes how many of the defective parts, or of the good ones, have a label.
function describePartCount(isDefective, label) {
  const ofClass = parts.filter((part) => part.isDefective === isDefective);
  const count = ofClass.filter((part) => part.label === label).length;
  return ofClass.length
    ? `Parts: ${count} of ${ofClass.length}, ${formatPercent(count / ofClass.length)}` : '';
}
