// State of the page, and the events that change it.

const data = JSON.parse(document.getElementById("data").textContent);
const palettes = { similarity: bytesOf(data.palettes.similarity), clusters: bytesOf(data.palettes.clusters) };
const networks = data.networks.map((network) => new Network(network));
const boards = networks.map((network, number) => new Board(network, data.images, number, palettes));
const readout = new Readout(document.getElementById("readout"), data.images);
const toolbar = document.querySelector(".toolbar");
const state = { query: { image: 0, from: data.start, to: data.start } };
let drawing = 0;
let drag = null;

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function draw() {
  drawing = 0;
  const started = performance.now();
  Object.assign(document.body.dataset, {
    view: state.view, asked: Boolean(state.query), patches: state.patches, regions: state.regions,
  });
  document.body.style.setProperty("--opacity", state.opacity / 100);
  readout.tell(state, boards, boards.map((board) => board.draw(state)));
  explorer.drawnIn = performance.now() - started;
}

// Draws once before the next frame, however often the state changes until then.
function change(changes) {
  Object.assign(state, changes);
  drawing ||= requestAnimationFrame(draw);
}

function readToolbar() {
  const { view, clusters, opacity, matches, positives, patches, follow, regions, clusterCount } = toolbar.elements;
  clusterCount.value = clusters.value;
  change({
    view: view.value, clusters: Number(clusters.value), opacity: Number(opacity.value), matches: matches.checked,
    positives: positives.checked, patches: patches.checked, follow: follow.checked, regions: regions.checked,
  });
}

const ask = (image, from, to = from) => change({ query: { image, from, to } });

function startDrag(tile, event) {
  // On a touch screen a drag scrolls, unless regions are asked for; a tap arrives as a click.
  if (event.button || (event.pointerType === "touch" && !state.regions)) return;
  drag = { tile, from: tile.pointAt(event) };
  tile.panel.setPointerCapture(event.pointerId);
  ask(tile.index, drag.from);
}

function moveDrag(tile, event) {
  const point = tile.pointAt(event);
  if (drag?.tile === tile) ask(tile.index, drag.from, sameCell(drag.from, point, tile.grid) ? drag.from : point);
  else if (state.follow && event.pointerType === "mouse") ask(tile.index, point);
}

function endDrag() {
  drag = null;
}

function tap(tile, event) {
  if (event.pointerType !== "mouse" && !state.regions) ask(tile.index, tile.pointAt(event));
}

function press(tile, event) {
  const { query } = state;
  if (event.key in ARROWS && !event.ctrlKey && !event.metaKey && !event.altKey) {
    change({ query: movedQuery(query, tile.index, tile.grid, ARROWS[event.key], event.shiftKey) });
  } else if (event.key === "Enter" || event.key === " ") {
    change({ query: movedQuery(query, tile.index, tile.grid, [0, 0], false) });
  } else return;
  event.preventDefault();
}

function askForMatch(board, event) {
  const button = event.target.closest("button[data-match]");
  if (!button) return;
  const { image, patch } = board.matches[button.dataset.match];
  const { top, left } = board.tiles[image].boxAt(patch);
  ask(image, centreOf(top, left, board.tiles[image].grid));
  board.tiles[image].panel.focus({ preventScroll: true });
}

function listen(board) {
  board.matchList.addEventListener("click", (event) => askForMatch(board, event));
  for (const tile of board.tiles) {
    tile.panel.addEventListener("pointerdown", (event) => startDrag(tile, event));
    tile.panel.addEventListener("pointermove", (event) => moveDrag(tile, event));
    tile.panel.addEventListener("pointerup", endDrag);
    tile.panel.addEventListener("pointercancel", endDrag);
    tile.panel.addEventListener("click", (event) => tap(tile, event));
    tile.panel.addEventListener("keydown", (event) => press(tile, event));
    tile.picture.addEventListener("load", () => change({})); // crops of matches show it
  }
  new ResizeObserver(() => board.drawLines(state.query)).observe(board.gallery);
}

// For the browser's console: `explorer.networks[0].cosines(explorer.networks[0].mean([0]))`.
const explorer = { state, networks, boards, change, drawnIn: 0 };
globalThis.explorer = explorer;

document.getElementById("boards").style.setProperty("--boards", boards.length);
document.getElementById("boards").append(...boards.map((board) => board.node));
document.getElementById("notes").append(...networks.map(precisionOf));
boards.forEach(listen);
toolbar.addEventListener("input", readToolbar);
toolbar.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") change({ query: null });
});
readToolbar();
