// Features of one network, and cosines between patches (quantise.py has the formula).

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

class Network {
  constructor(data) {
    Object.assign(this, { name: data.name, dim: data.dim, components: data.components, patch: data.patch });
    Object.assign(this, { grids: data.grids, k: data.k, meanSquare: data.meanSquare, error: data.error });
    this.codes = new Int8Array(bytesOf(data.codes).buffer);
    this.scales = new Float32Array(bytesOf(data.scales).buffer);
    this.offsets = new Float32Array(bytesOf(data.offsets).buffer);
    this.colours = bytesOf(data.colours);
    this.positives = new Int32Array(bytesOf(data.positives).buffer);
    this.starts = [0]; // index of the first patch of each image, and of the end
    for (const [rows, columns] of this.grids) this.starts.push(this.starts.at(-1) + rows * columns);
  }

  get size() {
    return this.starts.at(-1);
  }

  // Mean feature of some patches: { vector, offset, length }, and `patch` for a single one, which has length 1.
  mean(patches) {
    const vector = new Float32Array(this.components);
    let offset = 0;
    for (const patch of patches) {
      const start = patch * this.components;
      const weight = this.scales[patch] / patches.length;
      for (let d = 0; d < this.components; d++) vector[d] += weight * this.codes[start + d];
      offset += this.offsets[patch] / patches.length;
    }
    if (patches.length === 1) return { vector, offset, length: 1, patch: patches[0] };
    const square = vector.reduce((sum, value) => sum + value * value, this.meanSquare + 2 * offset);
    return { vector, offset, length: Math.sqrt(Math.max(square, 1e-12)) };
  }

  // Cosine of every patch of every image with a mean feature.
  cosines({ vector, offset, length, patch: own }) {
    const { codes, scales, offsets, components, size } = this;
    const found = new Float32Array(size);
    for (let patch = 0, i = 0; patch < size; patch++) {
      let product = 0;
      for (let d = 0; d < components; d++, i++) product += codes[i] * vector[d];
      found[patch] = (this.meanSquare + offset + offsets[patch] + scales[patch] * product) / length;
    }
    if (own !== undefined) found[own] = 1; // components that were left out do not change it
    return found;
  }

  // Best patch of each other image: the most similar `count` of them, best first.
  matches(cosines, image, count) {
    const best = [];
    for (let other = 0; other < this.grids.length; other++) {
      if (other === image) continue;
      let patch = this.starts[other];
      for (let p = patch; p < this.starts[other + 1]; p++) if (cosines[p] > cosines[patch]) patch = p;
      best.push({ image: other, patch: patch - this.starts[other], cosine: cosines[patch] });
    }
    return best.sort((a, b) => b.cosine - a.cosine).slice(0, count);
  }

  // Flat indices, in its image, of the positives of a patch.
  positivesOf(image, patch) {
    const start = (this.starts[image] + patch) * this.k;
    return [...this.positives.subarray(start, start + this.k)].filter((index) => index >= 0);
  }
}
