// k-means of the patches of all images (Lloyd 1982, seeded as by Arthur and Vassilvitskii 2007).
// Between unit features, squared distance is 2 - 2 cosine. Means are found on a sample; then every patch is assigned.

const SAMPLE = 3000;
const MAX_DIMENSIONS = 48; // first principal components
const ITERATIONS = 15;

// Random numbers in [0, 1) that are the same every time (mulberry32).
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

// Features of some patches, [patches.length * dimensions].
function pointsOf(network, patches, dimensions) {
  const points = new Float32Array(patches.length * dimensions);
  patches.forEach((patch, row) => {
    const start = patch * network.components;
    for (let d = 0; d < dimensions; d++) points[row * dimensions + d] = network.scales[patch] * network.codes[start + d];
  });
  return points;
}

function squaredDistance(points, row, means, cluster, dimensions) {
  let sum = 0;
  for (let d = 0, i = row * dimensions, j = cluster * dimensions; d < dimensions; d++) {
    const difference = points[i + d] - means[j + d];
    sum += difference * difference;
  }
  return sum;
}

function nearest(points, row, means, k, dimensions) {
  let best = 0;
  let least = Infinity;
  for (let cluster = 0; cluster < k; cluster++) {
    const distance = squaredDistance(points, row, means, cluster, dimensions);
    if (distance < least) [best, least] = [cluster, distance];
  }
  return best;
}

function seedMeans(points, count, k, dimensions) {
  const random = seeded(0);
  const means = new Float32Array(k * dimensions);
  const distances = new Float32Array(count).fill(Infinity);
  let row = Math.floor(random() * count);
  for (let cluster = 0; cluster < k; cluster++) {
    means.set(points.subarray(row * dimensions, (row + 1) * dimensions), cluster * dimensions);
    let total = 0;
    for (let i = 0; i < count; i++) {
      distances[i] = Math.min(distances[i], squaredDistance(points, i, means, cluster, dimensions));
      total += distances[i];
    }
    let left = random() * total;
    for (row = 0; row < count - 1 && left > distances[row]; row++) left -= distances[row];
  }
  return means;
}

function moveMeans(points, assigned, means, k, dimensions) {
  const sums = new Float64Array(k * dimensions);
  const counts = new Uint32Array(k);
  assigned.forEach((cluster, row) => {
    counts[cluster]++;
    for (let d = 0; d < dimensions; d++) sums[cluster * dimensions + d] += points[row * dimensions + d];
  });
  for (let i = 0; i < sums.length; i++) {
    const count = counts[Math.floor(i / dimensions)];
    if (count) means[i] = sums[i] / count; // a mean without patches stays
  }
}

// Order of means along the first principal component, so that colours stay similar when k changes.
function ordered(means, k, dimensions) {
  const clusters = [...Array(k).keys()].sort((a, b) => means[a * dimensions] - means[b * dimensions]);
  const rank = new Uint8Array(k);
  clusters.forEach((cluster, position) => (rank[cluster] = position));
  return rank;
}

// Cluster of every patch, as numbers from 0.
function kMeans(network, k) {
  const dimensions = Math.min(MAX_DIMENSIONS, network.components);
  const step = Math.max(1, network.size / SAMPLE);
  const sample = Array.from({ length: Math.ceil(network.size / step) }, (_, i) => Math.floor(i * step));
  const points = pointsOf(network, sample, dimensions);
  const means = seedMeans(points, sample.length, k, dimensions);
  const assigned = new Uint8Array(sample.length);
  for (let iteration = 0; iteration < ITERATIONS; iteration++) {
    for (let row = 0; row < sample.length; row++) assigned[row] = nearest(points, row, means, k, dimensions);
    moveMeans(points, assigned, means, k, dimensions);
  }
  const everyPatch = pointsOf(network, [...Array(network.size).keys()], dimensions);
  const rank = ordered(means, k, dimensions);
  return Uint8Array.from({ length: network.size }, (_, row) => rank[nearest(everyPatch, row, means, k, dimensions)]);
}
