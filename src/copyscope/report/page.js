// Tools, and the lists of the report: filter, sort, search, page, save, link. Only the visible page of rows is ever built, and what the data
// holds enters the page as text nodes and attributes of images, never as markup.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
let images = null; // parsed when the first image is shown
const uri = (place) => {
  images ??= JSON.parse(byId("images").textContent);
  // A picture that stands in the page itself is not there twice.
  return images[place] ?? document.querySelector(`img[data-place="${place}"]`)?.src;
};
document.documentElement.classList.add("scripted");

const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
};

const count = (n) => Number(n).toLocaleString("en");
const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;
const fixed = (value) => (value === null ? "–" : value.toFixed(3).replace("-", "−"));
const short = (value) => (value === null ? "–" : Math.abs(value) >= 1000 ? count(Math.round(value)) : String(value));
const pValue = (p) => (p === null ? "–" : p < 1e-4 ? "< 0.0001" : p.toFixed(p < 0.01 ? 4 : 3));
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`);

// Text of the user's data: long text folds away behind its beginning.
const said = (text, className) => {
  if (text.length <= 180) return el("p", { class: className, dir: "auto" }, text);
  const start = Array.from(text.slice(0, 140)).slice(0, -1).join("");
  return el("details", { class: `${className} long` },
    el("summary", {}, el("bdi", {}, `${start}… `), el("span", { class: "more" }, "all")),
    el("p", { dir: "auto" }, text));
};
const labelled = (label, texts) => {
  const known = (texts ?? []).filter((text) => text);
  if (!known.length) return null;
  const rest = known.slice(3);
  return el("div", { class: "said" }, el("p", { class: "label" }, label), ...known.slice(0, 3).map((text) => said(text, "text")),
    rest.length ? el("details", { class: "long" }, el("summary", {}, `${many(rest.length, "more", "more")}`),
      ...rest.slice(0, 200).map((text) => el("p", { dir: "auto", class: "text" }, text))) : null);
};
// A prompt beside the captions of the training image it called up.
const compared = (...texts) => el("div", { class: "compare" }, ...texts);
const picture = (place, alt, className = "") => place === null || place === undefined
  ? el("div", { class: `absent ${className}`, role: "img", "aria-label": `${alt}: no preview` }, "no preview")
  : el("img", { src: uri(place), alt, class: className, loading: "lazy", decoding: "async" });
// A picture of `size` with boxes around parts of it, in shares; two lines, so that one shows on any ground.
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const boxed = (place, alt, [width, height], box) => {
  const [left, top, across, down] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
  const lines = ["ground", "line"].map((name) => svg("rect", { class: name, x: left, y: top, width: across, height: down }));
  return svg("svg", { class: "boxed", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt },
    svg("image", { href: uri(place), width, height, preserveAspectRatio: "none" }), ...lines);
};
const figures = (pairs) => el("dl", { class: "facts" },
  ...pairs.filter(([, value]) => value !== null).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
const goTo = (text, list, query) => el("button", { type: "button", class: "quiet", "data-show": list, "data-query": query }, text);
const actionName = { deduplicate: "Deduplicate", recaption: "Recaption", drop: "Drop", review: "Review", keep: "Keep" };

// A file for the user to keep. Text that a spreadsheet would run as a formula gets an apostrophe in front.
const saveFile = (name, text, type) => {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const FORMULA = /^'*(?:[\t\r\n]|[\s\ufeff\0]*[=+\-@\uff1d\uff0b\uff0d\uff20])/;
const cell = (value) => {
  const text = Array.isArray(value) ? value.join("; ") : String(value ?? "");
  const safe = typeof value !== "number" && FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const saveCsv = (name, rows) => saveFile(`${name}.csv`, rows.map((row) => `${row.map(cell).join(",")}\r\n`).join(""), "text/csv");
// What the page calls a column; those that are not in it are of use to the page alone.
const columnNames = { score: "similarity", verified: "pixel_score", combined: "score", near: "suspicious" };
const hidden = /^(.*img|.*_large|sha|hits|size_|placed)$/;

// One list of the page. `columns`: arrays of equal length, `id` among them. orders: sort name -> [column, direction];
// a sort name without an entry keeps the order the rows came in. pairOf: what the viewer shows of a row.
const lists = {};
const list = (name, { columns, size, build, keeps, texts, orders, pairOf }) => {
  const form = document.querySelector(`form[data-list="${name}"]`);
  if (!form) return;
  const box = byId(`${name}-rows`), pager = byId(`${name}-pager`), total = columns.id.length;
  const collator = new Intl.Collator("en", { numeric: true });
  const sorted = new Map();
  const fields = ["q", "filter", "sort", "view"].filter((field) => form.elements[field]);
  const initial = Object.fromEntries(fields.map((field) => [field, form.elements[field].value]));
  let page = 0, haystack = null;

  const order = (key) => {
    if (!sorted.has(key)) {
      const rows = Array.from({ length: total }, (_, row) => row);
      if (orders[key]) {
        const [values, direction] = orders[key];
        const known = rows.filter((row) => values[row] !== null);
        known.sort((a, b) => direction * (typeof values[a] === "string"
          ? collator.compare(values[a], values[b]) : values[a] - values[b]) || a - b);
        sorted.set(key, known.concat(rows.filter((row) => values[row] === null)));
      } else sorted.set(key, rows);
    }
    return sorted.get(key);
  };
  const found = () => {
    const words = form.elements.q.value.toLowerCase().split(/\s+/).filter((word) => word);
    const filter = form.elements.filter?.value ?? "all";
    if (words.length) haystack ??= Array.from({ length: total }, (_, row) => texts(row).join("\n").toLowerCase());
    const keep = keeps[filter] ?? ((row) => keeps.other(row, filter));
    return order(form.elements.sort.value).filter((row) =>
      keep(row) && (!words.length || words.every((word) => haystack[row].includes(word))));
  };
  const show = (toPage = 0) => {
    const rows = found(), pages = Math.max(1, Math.ceil(rows.length / size));
    page = Math.min(Math.max(toPage, 0), pages - 1);
    const view = form.elements.view?.value;
    box.replaceChildren(...rows.slice(page * size, (page + 1) * size).map((row) => build(row, view)));
    form.elements.count.value = rows.length === total ? `${count(total)} in all` : `${count(rows.length)} of ${count(total)}`;
    if (!rows.length && box.tagName !== "TBODY") box.replaceChildren(el("p", { class: "empty" }, "Nothing matches."));
    pager.hidden = pages === 1;
    pager.querySelector("span").textContent = `Page ${count(page + 1)} of ${count(pages)}`;
    const [back, forth] = pager.querySelectorAll("button");
    back.disabled = page === 0;
    forth.disabled = page === pages - 1;
  };
  // The address of the page holds what differs from the start, so that a link shows the same rows.
  const note = () => {
    const kept = new URLSearchParams();
    for (const field of fields) if (form.elements[field].value !== initial[field]) kept.set(field, form.elements[field].value);
    if (page) kept.set("page", page + 1);
    try { history.replaceState(null, "", `#${String(kept) ? `${name}?${kept}` : form.closest("section").id}`); } catch { /* not here */ }
  };
  const restore = (query) => {
    const asked = new URLSearchParams(query);
    for (const field of fields) {
      form.elements[field].value = asked.get(field) ?? initial[field];
      if (!form.elements[field].value) form.elements[field].value = initial[field];
    }
    show((Number(asked.get("page")) || 1) - 1);
    form.closest("section").scrollIntoView();
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    show(event.target.name === "view" ? page : 0);
    note();
  });
  form.querySelector("[data-clear]").addEventListener("click", () => {
    form.reset();
    show();
    note();
  });
  form.querySelector("[data-csv]").addEventListener("click", () => {
    const names = Object.keys(columns).filter((key) => !hidden.test(key));
    saveCsv(name, [names.map((key) => columnNames[key] ?? key), ...found().map((row) => names.map((key) => columns[key][row]))]);
  });
  pager.addEventListener("click", (event) => {
    const step = Number(event.target.dataset?.step);
    if (!step) return;
    show(page + step);
    note();
    form.scrollIntoView();
  });
  // The viewer goes through the rows that are found, or through all where the row is not among them.
  const open = (row) => {
    const shown = found().includes(row) ? found() : order(form.elements.sort.value);
    const rows = shown.filter((one) => pairOf(one) !== null);
    viewer.open(rows.map((one) => () => pairOf(one)), rows.indexOf(row));
  };
  box.addEventListener("click", (event) => {
    const zoom = pairOf && event.target.closest?.("[data-zoom]");
    if (zoom) open(Number(zoom.dataset.zoom));
  });
  lists[name] = {
    find: (query = "", filter = null) => {
      form.elements.q.value = query;
      if (form.elements.filter) form.elements.filter.value = filter ?? "all";
      show();
      note();
      form.closest("section").scrollIntoView();
      form.elements.q.focus({ preventScroll: true });
    },
    open,
    restore,
    refresh: () => show(page),
  };
  show();
};
// Lists whose state the address holds; called when all lists are there, and when the address changes.
const restoreAddress = () => {
  const [name, query] = location.hash.slice(1).split("?");
  if (query !== undefined) lists[name]?.restore(query);
};
