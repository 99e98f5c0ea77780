// A query: an image, and two opposite corners of a region as points [x, y] in fractions of it. Equal corners are one patch.

const cellOf = ([x, y], [rows, columns]) => [
  Math.min(rows - 1, Math.max(0, Math.floor(y * rows))),
  Math.min(columns - 1, Math.max(0, Math.floor(x * columns))),
];

const centreOf = (row, column, [rows, columns]) => [(column + 0.5) / columns, (row + 0.5) / rows];

// Rows and columns of the patches of a query on a network's grid.
function boxOf(query, grid) {
  const [rowA, columnA] = cellOf(query.from, grid);
  const [rowB, columnB] = cellOf(query.to, grid);
  const [top, left] = [Math.min(rowA, rowB), Math.min(columnA, columnB)];
  return { top, left, rows: Math.abs(rowA - rowB) + 1, columns: Math.abs(columnA - columnB) + 1 };
}

// Flat indices, in its image, of the patches of a query.
function patchesOf(query, grid) {
  const { top, left, rows, columns } = boxOf(query, grid);
  return Array.from({ length: rows * columns }, (_, i) => (top + Math.floor(i / columns)) * grid[1] + left + (i % columns));
}

const sameCell = (a, b, grid) => cellOf(a, grid).join() === cellOf(b, grid).join();

// The query after an arrow key on an image of this grid: moved by one patch, or extended.
function movedQuery(query, image, grid, [down, right], extend) {
  const start = query ? query.to : [0.5, 0.5];
  const [row, column] = cellOf(start, grid);
  const isHere = query?.image === image;
  const to = isHere
    ? centreOf(Math.min(grid[0] - 1, Math.max(0, row + down)), Math.min(grid[1] - 1, Math.max(0, column + right)), grid)
    : centreOf(row, column, grid);
  return { image, from: extend && isHere ? query.from : to, to };
}
