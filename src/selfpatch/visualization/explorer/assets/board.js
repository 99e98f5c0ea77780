// All images of one network, with its colour bar, the best matches and the lines to them.

const MAX_MATCHES = 5;
const CROP_PATCHES = 7; // patches along a side of the picture of a match
const CROP_PIXELS = 144;
const GAP_AT_QUERY = 16; // pixels

class Board {
  constructor(network, images, number, palettes) {
    Object.assign(this, { network, images, palettes });
    this.tiles = images.map((image, index) => new Tile(image, index, network));
    this.lines = shape("svg", { class: "lines", "aria-hidden": "true" });
    this.gallery = element("div", { class: "gallery" }, ...this.tiles.map((tile) => tile.node), this.lines);
    this.low = element("span");
    this.high = element("span");
    const bar = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    this.paintBar(bar);
    this.matchList = element("ol", { class: "matches", "aria-label": `Best matches in other images, ${network.name}` });
    this.node = element("section", { class: "board", "aria-labelledby": `network-${number}` },
      element("div", { class: "head" },
        element("h2", { id: `network-${number}` }, network.name),
        element("p", { class: "scale" }, "cosine ", this.low, bar, this.high)),
      this.matchList, this.gallery);
    this.clusters = new Map();
  }

  paintBar(canvas) {
    const pixels = new ImageData(256, 1);
    const colour = similarityColours(Float32Array.from({ length: 256 }, (_, i) => i), [0, 255], this.palettes.similarity);
    const colours = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < 256; i++) colours[i] = colour(i);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // Draws everything that depends on the state; returns the matches and the positives, for the readout.
  draw(state) {
    const { query } = state;
    const chosen = query ? patchesOf(query, this.network.grids[query.image]) : [];
    const indices = chosen.map((patch) => this.network.starts[query.image] + patch);
    this.cosines = query ? this.network.cosines(this.network.mean(indices)) : null;
    const matches = query ? this.network.matches(this.cosines, query.image, MAX_MATCHES) : [];
    const positives = chosen.length === 1 ? this.network.positivesOf(query.image, chosen[0]) : [];
    const colour = this.colourOf(state, indices);
    if (colour) for (const tile of this.tiles) tile.paint(colour);
    for (const tile of this.tiles) {
      if (tile.index === query?.image) tile.markQuery(query, state.positives ? positives : []);
      else tile.mark([]);
    }
    this.matches = state.matches ? matches : [];
    this.drawMatches();
    this.drawLines(query);
    return { matches, positives: positives.map((patch) => this.cosines[this.network.starts[query.image] + patch]) };
  }

  colourOf({ view, clusters }, indices) {
    if (view === "components") return componentColours(this.network.colours);
    if (view === "clusters") return clusterColours(this.clustersFor(clusters), indices, this.palettes.clusters);
    if (view !== "similarity" || !this.cosines) return null;
    const range = rangeOf(this.cosines);
    [this.low.textContent, this.high.textContent] = range.map((value) => value.toFixed(2));
    return similarityColours(this.cosines, range, this.palettes.similarity);
  }

  clustersFor(k) {
    if (!this.clusters.has(k)) this.clusters.set(k, kMeans(this.network, k));
    return this.clusters.get(k);
  }

  drawMatches() {
    this.matchList.replaceChildren(...this.matches.map((match, i) => {
      const canvas = element("canvas", { width: CROP_PIXELS, height: CROP_PIXELS });
      this.drawCrop(canvas, match);
      const { name } = this.images[match.image];
      const label = `Match ${i + 1}: ${name}, cosine ${match.cosine.toFixed(2)}; ask for this patch`;
      const button = element("button", { type: "button", title: name, "aria-label": label },
        canvas, `${i + 1} · ${match.cosine.toFixed(2)}`);
      button.dataset.match = i;
      return element("li", {}, button);
    }));
  }

  // Draws the surroundings of a match, with its patch outlined.
  drawCrop(canvas, { image, patch }) {
    const { picture, grid } = this.tiles[image];
    const { top, left } = this.tiles[image].boxAt(patch);
    const side = picture.naturalWidth / grid[1];
    const scale = CROP_PIXELS / (CROP_PATCHES * side);
    // The patch is in the middle, except near the border of the image.
    const first = (position, count) => Math.max(0, Math.min(position - (CROP_PATCHES - 1) / 2, count - CROP_PATCHES));
    const [firstRow, firstColumn] = [first(top, grid[0]), first(left, grid[1])];
    const context = canvas.getContext("2d");
    const drawn = (pixels) => pixels * scale;
    context.drawImage(picture, drawn(-firstColumn * side), drawn(-firstRow * side),
      drawn(picture.naturalWidth), drawn(picture.naturalHeight));
    for (const [style, width] of [["#000a", 8], ["#fff", 4]]) {
      [context.strokeStyle, context.lineWidth] = [style, width];
      context.strokeRect(drawn((left - firstColumn) * side), drawn((top - firstRow) * side), drawn(side), drawn(side));
    }
  }

  // Draws curves from the query to the matches, numbered at their ends.
  drawLines(query) {
    if (!query || !this.matches.length) return this.lines.replaceChildren();
    const origin = this.gallery.getBoundingClientRect();
    const middle = query.from.map((value, i) => (value + query.to[i]) / 2);
    const start = this.tiles[query.image].pixelOf(middle, origin);
    const ends = this.matches.map(({ image, patch }) => {
      const tile = this.tiles[image];
      return tile.pixelOf(centreOf(tile.boxAt(patch).top, tile.boxAt(patch).left, tile.grid), origin);
    });
    const curves = ends.map((end) => curveBetween(start, end));
    this.lines.replaceChildren(
      ...curves.map((d) => shape("path", { d, class: "casing" })),
      ...curves.map((d) => shape("path", { d })),
      ...ends.flatMap(([x, y], i) => {
        const number = shape("text", { x, y });
        number.textContent = i + 1;
        return [shape("circle", { cx: x, cy: y, r: 9 }), number];
      }));
  }
}

// Path of a line that bends upwards a little, so that lines in one direction do not hide one another, and that begins
// beside the query, so that it stays visible.
function curveBetween([x0, y0], [x1, y1]) {
  const length = Math.max(1, Math.hypot(x1 - x0, y1 - y0));
  const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2 - 0.18 * length];
  const gap = Math.min(0.5, GAP_AT_QUERY / length);
  return `M${x0 + gap * (x1 - x0)} ${y0 + gap * (y1 - y0)}Q${x} ${y} ${x1} ${y1}`;
}
