// Draws a block of weights and bytes; says to Python what was chosen, and marks what Python answers.

const WIDTH = 16; // weights in a row

function element(tag, className, text, parent) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Blue below zero, vermilion above, white at zero; lightness alone tells the magnitude.
function shade(value, peak) {
  const share = peak > 0 && Number.isFinite(value) ? Math.min(1, Math.abs(value) / peak) : 0;
  const end = value < 0 ? [86, 180, 233] : [240, 150, 90];
  return `rgb(${end.map((c) => Math.round(255 + (c - 255) * share)).join(",")})`;
}

function render({ model, el }) {
  const root = element("div", "rq-bits", undefined, el);
  let weights = [];
  let bits = []; // by number: bit i is bit i % 8 of byte i / 8

  function choose(kind, number) {
    model.set("chosen", [kind, number]);
    model.save_changes();
  }

  // One stop of the Tab key for the whole group; arrows move inside, in the order in which the cells are shown.
  function keys(group, kind, cells, columns) {
    group.addEventListener("keydown", (event) => {
      const shown = cells.indexOf(event.target);
      const row = columns();
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row };
      let next;
      if (event.key in steps) next = shown + steps[event.key];
      else if (event.key === "Home") next = 0;
      else if (event.key === "End") next = cells.length - 1;
      else return;
      event.preventDefault();
      event.stopPropagation();
      if (shown < 0 || next < 0 || next >= cells.length) return;
      cells[next].focus();
      choose(kind, Number(cells[next].dataset.at));
    });
    group.addEventListener("click", (event) => {
      const cell = event.target.closest("button");
      if (cell) choose(kind, Number(cell.dataset.at));
    });
  }

  function cell(className, text, label, at, parent) {
    const made = element("button", className, text, parent);
    made.type = "button";
    made.tabIndex = -1;
    made.dataset.at = at;
    made.title = label;
    made.setAttribute("aria-label", label);
    return made;
  }

  function draw() {
    const block = model.get("block");
    root.replaceChildren();
    const peak = Math.max(...block.values.map(Math.abs));

    element("div", "rq-head", `${block.values.length} weights (row-major order; shaded by value)`, root);
    const grid = element("div", "rq-weights", undefined, root);
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "Weights of the block");
    weights = block.values.map((value, i) => {
      const made = cell("rq-weight", String(i), `weight ${i}: ${value}`, i, grid);
      made.style.background = shade(value, peak);
      return made;
    });
    keys(grid, "weight", weights, () => WIDTH);

    const text = element("div", "rq-detail", undefined, root);
    text.setAttribute("role", "status");

    const all = element("div", "rq-bytes", undefined, root);
    all.setAttribute("role", "group");
    all.setAttribute("aria-label", "Bytes of the block");
    bits = [];
    const shown = [];
    for (const [name, first, size] of block.fields) {
      const last = first + size - 1;
      element("div", "rq-head", `${name}: ${size > 1 ? `bytes ${first} to ${last}` : `byte ${first}`}`, all);
      const field = element("div", "rq-field", undefined, all);
      for (let at = first; at <= last; at++) {
        const byte = element("span", "rq-byte", undefined, field);
        element("span", "rq-at", String(at), byte);
        for (let bit = 7; bit >= 0; bit--) {
          const value = (block.bytes[at] >> bit) & 1;
          const made = cell("rq-bit", String(value), `byte ${at}, bit ${bit}: ${value}`, 8 * at + bit, byte);
          bits[8 * at + bit] = made;
          shown.push(made);
        }
      }
    }
    keys(all, "bit", shown, () => 8);
    mark();
  }

  function mark() {
    const detail = model.get("detail");
    const [kind, number] = model.get("chosen");
    for (const cells of [weights, bits])
      for (const one of cells) {
        one.classList.remove("rq-on");
        delete one.dataset.part;
        one.tabIndex = -1;
        one.removeAttribute("aria-current");
      }
    for (const i of detail.weights) weights[i]?.classList.add("rq-on");
    for (const at of detail.bits) if (bits[at]) bits[at].dataset.part = "bit";
    for (const part of detail.parts) for (const at of part.bits) if (bits[at]) bits[at].dataset.part = part.kind;
    const current = (kind === "weight" ? weights : bits)[number];
    if (current) current.setAttribute("aria-current", "true");
    (kind === "weight" ? current : weights[0])?.setAttribute("tabindex", "0");
    (kind === "bit" ? current : bits[7])?.setAttribute("tabindex", "0");

    const text = root.querySelector(".rq-detail");
    text.replaceChildren();
    element("div", "rq-title", detail.title, text);
    const list = element("div", "rq-parts", undefined, text);
    for (const part of detail.parts) {
      const line = element("div", "rq-part", undefined, list);
      line.dataset.part = part.kind;
      element("b", "", part.label, line);
      element("span", "", part.where, line);
      element("code", "", part.binary, line);
      element("span", "", `→ ${part.value}`, line);
    }
    for (const step of detail.steps) element("div", "rq-step", step, text);
  }

  draw();
  model.on("change:block", draw);
  model.on("change:detail", mark);
}

export default { render };
