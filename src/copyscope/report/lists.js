const suspicious = (byId("gallery-rows")?.dataset.flag ?? "").includes("suspicious");

// The id of the risk card that speaks for a training image: its own, or that of its near-duplicate group.
const cards = new Set(data.risk.id);
const groupOf = new Map(data.groups.ids.flatMap((members) => members.map((member) => [member, members])));
const cardOf = (id) => cards.has(id) ? id : (groupOf.get(id) ?? []).find((member) => cards.has(member)) ?? null;

const g = data.gallery;
const flag = byId("gallery-rows")?.dataset.flag;
const caption = (title, id, value) => el("figcaption", {}, el("b", {}, title),
  value === undefined ? null : el("span", { class: "num" }, ` ${fixed(value)}`), el("bdi", { class: "id" }, id ?? "none"));
const scoresOf = (row) => [
  ["similarity", fixed(g.score[row])], ["pixel score", fixed(g.verified[row])], ["score", fixed(g.combined[row])],
  ["p-value", pValue(g.p_value[row])], ["group size", short(g.group_size[row])]];
const stacked = (row, view) => {
  const top = picture(g.img[row], `generated image ${g.id[row]}`, "upper");
  const frame = el("div", { class: `frame both ${view}` },
    picture(g.match_img[row], `training image ${g.match[row]}`), top);
  if (view === "difference") return [frame];
  const slider = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "From training image to generated image" });
  slider.addEventListener("input", (event) => {
    event.stopPropagation(); // the form above listens for its own fields
    top.style.opacity = slider.value / 100;
  });
  top.style.opacity = 0.5;
  return [frame, el("div", { class: "fade" }, el("span", {}, "training"), slider, el("span", {}, "generated"))];
};
// A picture that the viewer enlarges; one without a preview stays as it is.
const frame = (row, place, alt) => place === null || place === undefined ? el("div", { class: "frame" }, picture(place, alt))
  : el("button", { type: "button", class: "frame zoom", "data-zoom": row, "aria-label": `Enlarge ${alt}` }, picture(place, alt));
const pairImages = (row) => [named(g.id[row], g.sha[row]?.[0]), named(g.match[row], g.sha[row]?.[1])];
list("gallery", {
  columns: g,
  size: 12,
  keeps: {
    all: () => true,
    copies: (row) => g.copied[row],
    likeness: (row) => g.likeness[row],
    blank: (row) => g.blank[row],
    near: (row) => g.near[row],
  },
  orders: {
    score: [g.score, -1], verified: [g.verified, -1], p_value: [g.p_value, 1], group_size: [g.group_size, -1], id: [g.id, 1],
  },
  pairOf: (row) => g.match[row] === null ? null : {
    left: { place: g.img_large[row] ?? g.img[row], title: "Generated", id: g.id[row] },
    right: { place: g.match_large[row] ?? g.match_img[row], title: "Training image", id: g.match[row] },
    facts: scoresOf(row),
    images: pairImages(row),
    licensed: pairImages(row).slice(1),
  },
  texts: (row) => [g.id[row], g.prompt[row] ?? "", g.match[row] ?? "", cardOf(g.match[row]) ?? "", ...g.captions[row]],
  build: (row, view) => {
    const failed = g.error[row] !== null;
    const generated = el("figure", {}, frame(row, g.img[row], `generated image ${g.id[row]}`), caption("Generated", g.id[row]));
    const match = el("figure", {}, frame(row, g.match_img[row], `training image ${g.match[row]}`), caption("Training match", g.match[row], g.score[row]));
    const next = el("figure", { class: "next" }, el("div", { class: "frame" }, picture(g.next_img[row], `next best training image ${g.next_match[row]}`)), caption("Next best, other group", g.next_match[row], g.next_score[row]));
    const first = view === "side" || failed ? [generated, match] : [el("figure", { class: "two" }, ...stacked(row, view),
      caption(view === "overlay" ? "Generated over training match" : "Difference to training match", `${g.id[row]} · ${g.match[row]}`, g.score[row]))];
    return el("article", { class: g.copied[row] ? "card copy" : "card", "data-id": g.id[row] },
      el("p", { class: "flag" }, failed ? "could not be read" : g.copied[row] ? flag : g.blank[row] ? "blank: one colour, set apart"
        : g.likeness[row] ? "likeness: the same subject, not the same picture" : g.near[row] && !suspicious ? "◇ suspicious, not flagged" : "not flagged"),
      failed ? el("div", { class: "trio" }, generated) : el("div", { class: "trio" }, ...first, next),
      failed ? said(g.error[row], "text") : figures(scoresOf(row)),
      g.placed[row] ? el("p", { class: "under" }, `Found in a part of the generated image: ${g.placed[row]}.`) : null,
      g.why[row] ? el("p", { class: "why", dir: "auto" }, g.why[row]) : null,
      compared(labelled("Prompt", [g.prompt[row]]),
        labelled(g.captions[row].length > 1 ? "Training captions" : "Training caption", g.captions[row])),
      failed || g.match[row] === null ? null : marker(pairImages(row), pairImages(row).slice(1)),
      failed || g.match[row] === null ? null : el("p", { class: "links" },
        cardOf(g.match[row]) === null ? null : goTo("Risk card of the match", "risk", cardOf(g.match[row])),
        g.group_size[row] > 1 ? goTo("Its group", "groups", g.match[row]) : null));
  },
});

// Calibration images beside the training image that they are like; what is ticked becomes a list of ids.
const a = data.look_alikes ?? { id: [] };
const ticked = new Set();
const listTicked = () => {
  const box = byId("look-alikes-list");
  box.textContent = a.id.filter((_, row) => ticked.has(row)).join("\n");
  box.hidden = !ticked.size;
  byId("look-alikes-said").textContent = ticked.size ? `${many(ticked.size, "image", "images")} to leave out:` : "Nothing is ticked yet.";
};
list("look-alikes", {
  columns: a,
  size: 12,
  keeps: { all: () => true },
  orders: { score: [a.score, -1], verified: [a.verified, -1], id: [a.id, 1] },
  texts: (row) => [a.id[row], a.match[row] ?? ""],
  build: (row) => {
    const box = el("input", { type: "checkbox" });
    box.checked = ticked.has(row);
    box.addEventListener("input", (event) => {
      event.stopPropagation(); // the form above listens for its own fields
      ticked[box.checked ? "add" : "delete"](row);
      listTicked();
    });
    return el("article", { class: "card", "data-id": a.id[row] },
      el("div", { class: "pair" },
        el("figure", {}, el("div", { class: "frame" }, picture(a.img[row], `calibration image ${a.id[row]}`)), caption("Not trained on", a.id[row])),
        el("figure", {}, el("div", { class: "frame" }, picture(a.match_img[row], `training image ${a.match[row]}`)), caption("Training image", a.match[row]))),
      figures([["similarity", fixed(a.score[row])], ["pixel score", fixed(a.verified[row])], ["score", fixed(a.combined[row])]]),
      el("label", { class: "tick" }, box, " Leave it out: the same picture"));
  },
});

document.querySelectorAll("[data-strip]").forEach((strip) => {
  const row = Number(strip.dataset.strip);
  strip.append(...data.repeated.img[row].map((place, index) => picture(place, `generated image ${data.repeated.ids[row][index]}`)));
});

const d = data.groups;
const kinds = { full: "full duplication: a caption comes back too", partial: "partial duplication: captions differ", uncaptioned: "uncaptioned" };
const groupImages = (row) => d.ids[row].map((id, index) => named(id, d.sha[row][index]));
list("groups", {
  columns: d,
  size: 8,
  keeps: { all: () => true, exact: (row) => d.exact[row] > 1, other: (row, kind) => d.duplication[row] === kind },
  orders: { exact: [d.exact, -1], id: [d.id, 1] },
  texts: (row) => [...d.ids[row], ...d.captions[row]],
  build: (row) => el("article", { class: "group", "data-id": d.id[row] },
    el("h3", {}, `${count(d.size[row])} images`, el("span", { class: "tag" }, kinds[d.duplication[row]] ?? d.duplication[row]),
      d.exact[row] > 1 ? el("span", { class: "tag" }, `${count(d.exact[row])} pixel-identical`) : null,
      el("span", { class: "under" }, `group ${d.id[row]}`)),
    el("div", { class: "strip", tabindex: 0, role: "group", "aria-label": "Images of the group" },
      ...d.img[row].map((place, index) => picture(place, `training image ${d.ids[row][index]}`)),
      d.size[row] > d.img[row].length ? el("span", { class: "rest" }, d.img[row].length
        ? `and ${count(d.size[row] - d.img[row].length)} more` : "no previews of this group") : null),
    labelled(d.captions[row].length > 1 ? `${count(d.captions[row].length)} captions` : "Caption", d.captions[row]),
    d.ids[row].length > 1000 ? null : marker(groupImages(row), groupImages(row)),
    el("details", {}, el("summary", {}, "Ids"), el("pre", { class: "ids", tabindex: 0 }, d.ids[row].join("\n")))),
});

const r = data.risk;
const measures = [["entropy", "entropy"], ["jpeg_size", "JPEG size"], ["total_variation", "total variation"], ["mixed", "mixed"]];
// Short units stand beside the name; long ones are in the table of correlations.
const withUnit = (name, key) => (data.units[key] && data.units[key].length < 8 ? `${name}, ${data.units[key]}` : name);
const sharing = (row) => r.shared_captions[row] === null ? null
  : `${count(r.shared_captions[row])} same, ${count(r.near_shared_captions[row] ?? 0)} nearly`;
list("risk", {
  columns: r,
  size: 12,
  keeps: { all: () => true, copied: (row) => r.times_copied[row] > 0, other: (row, action) => r.action[row] === action },
  orders: {
    group_size: [r.group_size, -1], shared_captions: [r.shared_captions, -1], entropy: [r.entropy, 1],
    jpeg_size: [r.jpeg_size, 1], id: [r.id, 1],
  },
  texts: (row) => [r.id[row], ...(r.prompts[row] ?? []), ...r.captions[row], r.reason[row] ?? ""],
  build: (row) => el("article", { class: "card risk", "data-id": r.id[row] },
    el("div", { class: "head" }, picture(r.img[row], `training image ${r.id[row]}`),
      el("div", {}, el("p", { class: `action action-${r.action[row]}` }, actionName[r.action[row]] ?? r.action[row] ?? ""),
        r.times_copied[row] === null ? null : el("p", { class: "times" }, suspicious ? `${many(r.times_copied[row], "image", "images")} suspiciously near` : `copied ${many(r.times_copied[row], "time", "times")}`),
        r.share_low[row] === null ? null : el("p", { class: "under" }, `${percent(r.share_low[row])} to ${percent(r.share_high[row])} of generated images`),
        el("bdi", { class: "id" }, r.id[row]))),
    r.reason[row] ? el("p", { class: "why", dir: "auto" }, r.reason[row]) : null,
    figures([["group size", short(r.group_size[row])], ["duplication", r.duplication[row]], ["captions shared", sharing(row)],
      ["caption words", r.caption_length[row] === null ? null : short(r.caption_length[row])],
      ...measures.map(([key, name]) => [withUnit(name, key), r[key][row] === null ? null : short(r[key][row])])]),
    compared(labelled(suspicious ? "Prompts of these images" : "Prompts of its copies", r.prompts[row]),
      labelled(r.captions[row].length > 1 ? "Captions" : "Caption", r.captions[row])),
    el("p", { class: "links" }, r.times_copied[row] ? goTo(suspicious ? "These images" : "Its copies", "gallery", r.id[row]) : null,
      r.group_size[row] > 1 ? goTo("Its group", "groups", r.id[row]) : null)),
});
document.querySelectorAll("details[data-action]").forEach((details) => details.addEventListener("toggle", () => {
  const ids = details.dataset.action === "rest" ? d.ids.flatMap((members) => members.slice(1))
    : r.id.filter((_, row) => String(r.action[row]) === details.dataset.action);
  details.querySelector("pre").textContent = ids.join("\n");
}));

const f = data.failures;
list("failures", {
  columns: f,
  size: 25,
  keeps: { all: () => true, other: (row, corpus) => f.corpus[row] === corpus },
  orders: { id: [f.id, 1], error: [f.error, 1] },
  texts: (row) => [f.id[row], f.error[row] ?? ""],
  build: (row) => el("tr", {}, el("td", { "data-label": "Set" }, f.corpus[row] === "train" ? "training" : f.corpus[row]),
    el("td", { dir: "auto", class: "id", "data-label": "File" }, f.id[row]), el("td", { dir: "auto", "data-label": "Why" }, f.error[row] ?? "")),
});

const p = data.pictures ?? {};
const level = byId("pictures-rows")?.dataset.level;
const part = (said) => (said ? `, ${said} of it in a box` : "");
const asked = (row, hit) => el("div", { class: "frame" }, hit?.box && p.size[row] && p.img[row] !== null
  ? boxed(p.img[row], `picture ${p.id[row]}${part(hit.placed)}`, p.size[row], hit.box)
  : picture(p.img[row], `picture ${p.id[row]}`));
const source = (hit) => el("div", { class: "frame" }, hit.source && hit.img !== null
  ? boxed(hit.img, `training image ${hit.id}${part(hit.source_placed)}`, hit.size ?? [1, 1], hit.source)
  : picture(hit.img, `training image ${hit.id}`));
const parts = (hit) => [hit.box ? `Fills a part of the picture: ${hit.placed}.` : null,
  hit.source_placed ? `A part of the training image: ${hit.source_placed}.` : null].filter((text) => text).join(" ");
const scores = (hit) => figures([["p-value", pValue(hit.p_value)], ["score", fixed(hit.combined)],
  ["similarity", fixed(hit.score)], ["pixel score", fixed(hit.verified)]]);
list("pictures", {
  columns: p,
  size: 12,
  keeps: { all: () => true, flagged: (row) => p.flagged[row], boxed: (row) => p.boxed[row], failed: (row) => p.error[row] !== null && !p.blank[row], blank: (row) => p.blank[row] },
  orders: { id: [p.id, 1] },
  texts: (row) => [p.id[row], p.error[row] ?? "", ...p.hits[row].flatMap((hit) => [hit.id, hit.caption ?? ""])],
  build: (row) => {
    const [first, ...others] = p.hits[row];
    if (!first) {
      return el("article", { class: "card", "data-id": p.id[row] }, el("p", { class: "flag" }, p.blank[row] ? "blank" : "could not be read"),
        el("bdi", { class: "id" }, p.id[row]), said(p.error[row] ?? "", "text"));
    }
    return el("article", { class: p.flagged[row] ? "card copy" : "card", "data-id": p.id[row] },
      el("p", { class: "flag" }, p.identical[row] ? "■ the same image" : p.flagged[row] ? `■ p-value of ${level} or less` : "not flagged"),
      el("div", { class: "pair" },
        el("figure", {}, asked(row, first), el("figcaption", {}, el("b", {}, "Picture"), el("bdi", { class: "id" }, p.id[row]))),
        el("figure", {}, source(first), el("figcaption", {}, el("b", {}, "Training image"), el("bdi", { class: "id" }, first.id)))),
      scores(first),
      parts(first) ? el("p", { class: "why" }, parts(first)) : null,
      labelled("Training caption", [first.caption]),
      others.length ? el("details", {}, el("summary", {}, `The next ${many(others.length, "match", "matches")}`),
        ...others.map((hit) => el("div", { class: "next-match" },
          el("div", { class: "pair" }, asked(row, hit), source(hit)),
          el("div", {}, el("bdi", { class: "id" }, hit.id), scores(hit), parts(hit) ? el("p", { class: "under" }, parts(hit)) : null,
            labelled("Training caption", [hit.caption]))))) : null);
  },
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-show]");
  if (!button || !lists[button.dataset.show]) return;
  event.preventDefault();
  lists[button.dataset.show].find(button.dataset.query, button.dataset.filter);
});

// The pair at the top, and pictures of look-alikes.
document.querySelectorAll(".worst").forEach((figure) => figure.querySelectorAll("img").forEach((image) => {
  const button = el("button", { type: "button", class: "frame zoom", "aria-label": `Enlarge ${image.alt}` });
  image.parentNode.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => lists.gallery.open(Number(figure.dataset.zoom)));
}));

// Tables that stand in the page.
document.querySelectorAll("main .scroll > table").forEach((table) => {
  // On a phone each row becomes a block, and each cell says what its column is.
  const heads = Array.from(table.tHead?.rows[0]?.cells ?? [], (one) => one.innerText);
  for (const row of table.tBodies[0]?.rows ?? []) {
    Array.from(row.cells).forEach((one, index) => one.colSpan === 1 && one.setAttribute("data-label", heads[index] ?? ""));
  }
  if (table.querySelector("tbody[id]")) return;
  const button = el("button", { type: "button", class: "quiet" }, "Save as CSV");
  const text = (one) => one.innerText.replace(/\s+/g, " ").trim();
  button.addEventListener("click", () => saveCsv(table.closest("section").id,
    Array.from(table.rows, (row) => Array.from(row.cells, text))));
  table.parentNode.after(el("p", { class: "save" }, button));
});

window.addEventListener("hashchange", restoreAddress);
restoreAddress();

// Theme: auto follows the system; the choice is kept where the browser lets a local file keep anything.
const themes = ["auto", "light", "dark"], button = byId("theme");
const setTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
};
let kept = null;
try { kept = localStorage.getItem("copyscope-theme"); } catch { /* no storage here */ }
setTheme(themes.includes(kept) ? kept : "auto");
button.addEventListener("click", () => {
  const theme = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  setTheme(theme);
  try { localStorage.setItem("copyscope-theme", theme); } catch { /* no storage here */ }
});

// The section in view is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav.top a")].map((link) => [link.hash.slice(1), link]));
const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  links.forEach((link, id) => (id === entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  const current = links.get(entry.target.id);
  const bar = current?.closest("ul");
  if (bar) bar.scrollLeft = current.offsetLeft - bar.offsetLeft - 48;
}), { rootMargin: "-30% 0px -65% 0px" });
document.querySelectorAll("main > section").forEach((section) => watch.observe(section));
