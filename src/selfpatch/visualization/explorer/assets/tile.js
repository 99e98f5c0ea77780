// One image of one network: the picture, the map above it, and marks of patches.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

class Tile {
  constructor(image, index, network) {
    this.index = index;
    this.grid = network.grids[index];
    this.start = network.starts[index];
    const [rows, columns] = this.grid;
    this.picture = element("img", { src: image.picture, alt: "", draggable: "false" });
    this.map = element("canvas", { class: "map", width: columns, height: rows });
    this.pixels = new ImageData(columns, rows);
    this.colours = new Uint32Array(this.pixels.data.buffer);
    this.marks = shape("svg", { class: "marks", viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none" });
    // An application, so that screen readers pass on the arrow keys.
    this.panel = element("div", {
      class: "panel", tabindex: "0", role: "application", "aria-roledescription": "map of patches",
      "aria-label": `${image.name}, ${network.name}, ${rows} by ${columns} patches; arrow keys move the patch`,
    }, this.picture, this.map, this.marks);
    const aspect = image.sides[0] / image.sides[1];
    this.node = element("figure", { class: "tile", style: `--aspect: ${aspect.toFixed(4)}` },
      this.panel, element("figcaption", { title: image.name }, image.name));
  }

  paint(colour) {
    for (let patch = 0; patch < this.colours.length; patch++) this.colours[patch] = colour(this.start + patch);
    this.map.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  // Outlines boxes { top, left, rows, columns, kind }.
  mark(boxes) {
    this.marks.replaceChildren(...boxes.flatMap(({ top, left, rows, columns, kind }) =>
      ["casing", kind].map((style) => shape("rect", { x: left, y: top, width: columns, height: rows, class: style }))));
  }

  markQuery(query, positives) {
    const boxes = positives.map((patch) => ({ ...this.boxAt(patch), kind: "positive" }));
    this.mark([...boxes, { ...boxOf(query, this.grid), kind: "query" }]);
  }

  boxAt(patch) {
    return { top: Math.floor(patch / this.grid[1]), left: patch % this.grid[1], rows: 1, columns: 1 };
  }

  // Point [x, y], in fractions of the image, below a pointer.
  pointAt(event) {
    const { left, top, width, height } = this.panel.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  // Point [x, y], in fractions of the image, in pixels relative to another element.
  pixelOf([x, y], origin) {
    const { left, top, width, height } = this.panel.getBoundingClientRect();
    return [left - origin.left + x * width, top - origin.top + y * height];
  }
}
