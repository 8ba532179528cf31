// Where the nodes of a lineage stand. Teachers left of their students; on a narrow screen above them.

/** Families: runs that are tied by teaching, each {nodes, edges}; in the order of `nodes`. */
export function families(nodes, edges) {
  const of = new Map(nodes.map((node) => [node.uuid, node.uuid]));
  const root = (uuid) => {
    while (of.get(uuid) !== uuid) uuid = of.get(uuid);
    return uuid;
  };
  const known = edges.filter((e) => of.has(e.teacher) && of.has(e.student));
  for (const { teacher, student } of known) of.set(root(teacher), root(student));
  const found = new Map();
  const family = (uuid) => {
    if (!found.has(root(uuid))) found.set(root(uuid), { nodes: [], edges: [] });
    return found.get(root(uuid));
  };
  for (const node of nodes) family(node.uuid).nodes.push(node);
  for (const edge of known) family(edge.student).edges.push(edge);
  return [...found.values()];
}

/** {uuid: layer}: a student stands one layer past its last teacher; a circle is cut where it closes. */
export function layers({ nodes, edges }) {
  const teachers = new Map(nodes.map((node) => [node.uuid, []]));
  for (const { teacher, student } of edges) teachers.get(student).push(teacher);
  const layer = {};
  const open = new Set();
  const place = (uuid) => {
    if (uuid in layer || open.has(uuid)) return layer[uuid] ?? 0;
    open.add(uuid);
    layer[uuid] = Math.max(0, ...teachers.get(uuid).map((teacher) => place(teacher) + 1));
    open.delete(uuid);
    return layer[uuid];
  };
  for (const node of nodes) place(node.uuid);
  return layer;
}

/** Nodes layer by layer, each layer in the order of its teachers' places (the barycentre rule). */
function ordered(family) {
  const layer = layers(family);
  const columns = [];
  for (const node of family.nodes) (columns[layer[node.uuid]] ??= []).push(node);
  const row = {};
  for (const column of columns) {
    const centre = (node) => {
      const rows = family.edges.filter((e) => e.student === node.uuid).map((e) => row[e.teacher] ?? 0);
      return rows.length ? rows.reduce((a, b) => a + b) / rows.length : 0;
    };
    const centres = new Map(column.map((node) => [node, centre(node)]));
    column.sort((a, b) => centres.get(a) - centres.get(b) || (a.created || "").localeCompare(b.created || ""));
    column.forEach((node, i) => { row[node.uuid] = i; });
  }
  return columns;
}

/**
 * {width, height, at: {uuid: [x, y]}, path(edge)} with boxes of `box` = [width, height]: a column
 * for each layer where they fit into `room`, else one below the other, indented by layer.
 */
export function arranged(family, [w, h], room) {
  const columns = ordered(family);
  const [across, down] = [70, 12];
  if (columns.length * (w + across) - across <= room) return inColumns(family, columns, w, h, across, down);
  return indented(family, columns, w, h, down, room);
}

function inColumns(family, columns, w, h, across, down) {
  const tall = Math.max(...columns.map((column) => column.length)) * (h + down) - down;
  const at = {};
  columns.forEach((column, i) => {
    const top = (tall - (column.length * (h + down) - down)) / 2;
    column.forEach((node, j) => { at[node.uuid] = [i * (w + across), top + j * (h + down)]; });
  });
  const path = ({ teacher, student }) => {
    const [x1, y1] = [at[teacher][0] + w, at[teacher][1] + h / 2];
    const [x2, y2] = [at[student][0] - 7, at[student][1] + h / 2];
    const bend = Math.max(30, (x2 - x1) / 2);
    return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  };
  return { width: columns.length * (w + across) - across, height: tall, at, path, boxes: w };
}

function indented(family, columns, w, h, down, room) {
  const students = new Map();
  for (const { teacher, student } of family.edges) students.set(teacher, [...(students.get(teacher) || []), student]);
  const order = columns.flat().map((node) => node.uuid);
  const layer = Object.fromEntries(columns.flatMap((column, i) => column.map((node) => [node.uuid, i])));
  const indent = Math.min(26, (room - 150) / Math.max(1, columns.length - 1));
  const boxes = Math.min(w, room - indent * (columns.length - 1));
  const at = {};
  let y = 0;
  const place = (uuid) => {
    if (uuid in at) return;
    at[uuid] = [layer[uuid] * indent, y];
    y += h + down;
    for (const student of order.filter((other) => students.get(uuid)?.includes(other))) place(student);
  };
  order.forEach(place);
  const path = ({ teacher, student }) => {
    const [x1, y1] = [at[teacher][0] + indent / 2, at[teacher][1] + (at[student][1] > at[teacher][1] ? h : 0)];
    const [x2, y2] = [at[student][0] - 7, at[student][1] + h / 2];
    return `M${x1} ${y1}V${y2}H${Math.max(x2, x1)}`;
  };
  return { width: room, height: y - down, at, path, boxes };
}
