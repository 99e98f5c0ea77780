// What is shown, in words: a line that screen readers announce, and notes on precision.

const ANNOUNCE_AFTER = 150; // milliseconds without a change, so that a held key is not announced patch by patch

function placeOf(query, grid) {
  const { top, left, rows, columns } = boxOf(query, grid);
  const size = rows * columns > 1 ? `region of ${rows} × ${columns} patches at ` : "";
  return `${size}row ${top + 1} of ${grid[0]}, column ${left + 1} of ${grid[1]}`;
}

function resultOf({ matches, positives }, images) {
  const parts = [];
  const [best] = matches;
  if (best) parts.push(`best match ${images[best.image].name}, cosine ${best.cosine.toFixed(2)}`);
  if (positives.length) {
    const mean = positives.reduce((sum, value) => sum + value, 0) / positives.length;
    parts.push(`mean cosine of ${positives.length} positives ${mean.toFixed(2)}`);
  }
  return parts.join("; ") || "no other image";
}

class Readout {
  constructor(node, images) {
    Object.assign(this, { node, images });
  }

  tell(state, boards, results) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.node.replaceChildren(...this.lines(state, boards, results)), ANNOUNCE_AFTER);
  }

  lines({ query }, boards, results) {
    if (!query) return ["No patch is chosen."];
    const place = placeOf(query, boards[0].network.grids[query.image]);
    const here = element("span", {}, element("strong", {}, this.images[query.image].name), `, ${place}. `);
    const found = boards.map(({ network }, i) =>
      element("span", {}, element("strong", {}, network.name), `: ${resultOf(results[i], this.images)}. `));
    return [here, ...found];
  }
}

function precisionOf({ name, components, dim, patch, error }) {
  return element("p", {}, `${name}: patches of ${patch} pixels; ${components} of ${dim} principal components in 8 bits. Cosines differ from exact ones by ` +
    `${error.rms.toFixed(4)} (root mean square), ${error.max.toFixed(3)} at most, over the patches that were tested.`);
}
