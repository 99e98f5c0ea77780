// Colours of patches: functions from the index of a patch to its RGBA in one number, red in the lowest byte.

const LOW = 0.02; // share of patches that have the darkest colour of a similarity map
const HIGH = 0.998; // share of patches below the brightest one: a query alone must not take the whole range
const DIMMED = 90; // alpha of patches outside the query's cluster

// Colours [n * 3] as n numbers.
function packed(colours, alpha = 255) {
  return Uint32Array.from({ length: colours.length / 3 }, (_, i) =>
    colours[3 * i] | (colours[3 * i + 1] << 8) | (colours[3 * i + 2] << 16) | (alpha << 24));
}

// Ends of the colour bar, from all images of a network, so that colours compare across images.
function rangeOf(cosines) {
  const sorted = cosines.slice().sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return [at(LOW), Math.max(at(HIGH), at(LOW) + 1e-6)];
}

function similarityColours(cosines, [low, high], palette) {
  const colours = packed(palette);
  const scale = (colours.length - 1) / (high - low);
  return (patch) => colours[Math.round(Math.min(colours.length - 1, Math.max(0, (cosines[patch] - low) * scale)))];
}

function componentColours(colours) {
  const all = packed(colours);
  return (patch) => all[patch];
}

// Clusters; those without any of the `chosen` patches are dimmed if there are any.
function clusterColours(clusters, chosen, palette) {
  const [strong, dimmed] = [packed(palette), packed(palette, DIMMED)];
  const highlighted = new Set(chosen.map((patch) => clusters[patch]));
  return (patch) => (!highlighted.size || highlighted.has(clusters[patch]) ? strong : dimmed)[clusters[patch]];
}
