"use strict";
// Lists of the report: filter, sort, search, page. Only the visible page of rows is ever built, and what the data
// holds enters the page as text nodes and attributes of images, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  let images = null; // parsed when the first image is shown
  const uri = (place) => {
    images ??= JSON.parse(byId("images").textContent);
    return images[place];
  };

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

  // One list of the page. `columns`: arrays of equal length, `id` among them. orders: sort name -> [column, direction];
  // a sort name without an entry keeps the order the rows came in.
  const lists = {};
  const list = (name, { columns, size, build, keeps, texts, orders }) => {
    const form = document.querySelector(`form[data-list="${name}"]`);
    if (!form) return;
    const box = byId(`${name}-rows`), pager = byId(`${name}-pager`), total = columns.id.length;
    const collator = new Intl.Collator("en", { numeric: true });
    const sorted = new Map();
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

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => show(event.target.name === "view" ? page : 0));
    form.querySelector(".count button").addEventListener("click", () => {
      form.reset();
      show();
    });
    pager.addEventListener("click", (event) => {
      const step = Number(event.target.dataset?.step);
      if (!step) return;
      show(page + step);
      form.scrollIntoView();
    });
    lists[name] = (query = "", filter = null) => {
      form.elements.q.value = query;
      if (form.elements.filter) form.elements.filter.value = filter ?? "all";
      show();
      form.closest("section").scrollIntoView();
      form.elements.q.focus({ preventScroll: true });
    };
    show();
  };

  // The id of the risk card that speaks for a training image: its own, or that of its near-duplicate group.
  const cards = new Set(data.risk.id);
  const groupOf = new Map(data.groups.ids.flatMap((members) => members.map((member) => [member, members])));
  const cardOf = (id) => cards.has(id) ? id : (groupOf.get(id) ?? []).find((member) => cards.has(member)) ?? null;

  const g = data.gallery;
  const threshold = parseFloat(byId("gallery-rows")?.dataset.threshold), flag = byId("gallery-rows")?.dataset.flag;
  const caption = (title, id, value) => el("figcaption", {}, el("b", {}, title),
    value === undefined ? null : el("span", { class: "num" }, ` ${fixed(value)}`), el("bdi", { class: "id" }, id ?? "none"));
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
  list("gallery", {
    columns: g,
    size: 12,
    keeps: {
      all: () => true,
      copies: (row) => g.copied[row],
      likeness: (row) => g.likeness[row],
      blank: (row) => g.blank[row],
      near: (row) => !g.copied[row] && !g.likeness[row] && g.error[row] === null && ((g.p_value[row] !== null && g.p_value[row] <= 0.05)
        || (g.score[row] !== null && g.score[row] >= threshold)),
    },
    orders: {
      score: [g.score, -1], verified: [g.verified, -1], p_value: [g.p_value, 1], group_size: [g.group_size, -1], id: [g.id, 1],
    },
    texts: (row) => [g.id[row], g.prompt[row] ?? "", g.match[row] ?? "", cardOf(g.match[row]) ?? "", ...g.captions[row]],
    build: (row, view) => {
      const failed = g.error[row] !== null;
      const generated = el("figure", {}, el("div", { class: "frame" }, picture(g.img[row], `generated image ${g.id[row]}`)), caption("Generated", g.id[row]));
      const match = el("figure", {}, el("div", { class: "frame" }, picture(g.match_img[row], `training image ${g.match[row]}`)), caption("Training match", g.match[row], g.score[row]));
      const next = el("figure", { class: "next" }, el("div", { class: "frame" }, picture(g.next_img[row], `next best training image ${g.next_match[row]}`)), caption("Next best, other group", g.next_match[row], g.next_score[row]));
      const first = view === "side" || failed ? [generated, match] : [el("figure", { class: "two" }, ...stacked(row, view),
        caption(view === "overlay" ? "Generated over training match" : "Difference to training match", `${g.id[row]} · ${g.match[row]}`, g.score[row]))];
      return el("article", { class: g.copied[row] ? "card copy" : "card", "data-id": g.id[row] },
        el("p", { class: "flag" }, failed ? "could not be read" : g.copied[row] ? flag : g.blank[row] ? "blank: one colour, set apart"
          : g.likeness[row] ? "likeness: the same subject, not the same picture" : "not flagged"),
        failed ? el("div", { class: "trio" }, generated) : el("div", { class: "trio" }, ...first, next),
        failed ? said(g.error[row], "text") : figures([
          ["descriptor", fixed(g.score[row])], ["verified", fixed(g.verified[row])], ["combined", fixed(g.combined[row])],
          ["p-value", pValue(g.p_value[row])], ["group size", short(g.group_size[row])]]),
        g.placed[row] ? el("p", { class: "under" }, `Found in a part of the generated image: ${g.placed[row]}.`) : null,
        g.why[row] ? el("p", { class: "why", dir: "auto" }, g.why[row]) : null,
        compared(labelled("Prompt", [g.prompt[row]]),
          labelled(g.captions[row].length > 1 ? "Training captions" : "Training caption", g.captions[row])),
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
        figures([["descriptor", fixed(a.score[row])], ["verified", fixed(a.verified[row])], ["combined", fixed(a.combined[row])]]),
        el("label", { class: "tick" }, box, " Leave it out: the same picture"));
    },
  });

  document.querySelectorAll("[data-strip]").forEach((strip) => {
    const row = Number(strip.dataset.strip);
    strip.append(...data.repeated.img[row].map((place, index) => picture(place, `generated image ${data.repeated.ids[row][index]}`)));
  });

  const d = data.groups;
  const kinds = { full: "full duplication: a caption comes back too", partial: "partial duplication: captions differ", uncaptioned: "uncaptioned" };
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
      el("details", {}, el("summary", {}, "Ids"), el("pre", { class: "ids", tabindex: 0 }, d.ids[row].join("\n")))),
  });

  const r = data.risk;
  const measures = [["entropy", "entropy"], ["jpeg_size", "JPEG size"], ["total_variation", "total variation"], ["mixed", "mixed"]];
  // Short units stand beside the name; long ones are in the table of correlations.
  const withUnit = (name, key) => (data.units[key] && data.units[key].length < 8 ? `${name}, ${data.units[key]}` : name);
  const sharing = (row) => r.shared_captions[row] === null ? null
    : `${count(r.shared_captions[row])} same, ${count(r.near_shared_captions[row] ?? 0)} nearly`;
  const suspicious = (byId("gallery-rows")?.dataset.flag ?? "").includes("suspicious");
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
    build: (row) => el("tr", {}, el("td", {}, f.corpus[row] === "train" ? "training" : f.corpus[row]),
      el("td", { dir: "auto", class: "id" }, f.id[row]), el("td", { dir: "auto" }, f.error[row] ?? "")),
  });

  const p = data.pictures ?? {};
  const level = byId("pictures-rows")?.dataset.level;
  const part = (said) => (said ? `, ${said} of it in a box` : "");
  const asked = (row, hit) => el("div", { class: "frame" }, hit?.box && p.size[row] && p.img[row] !== null
    ? boxed(p.img[row], `picture ${p.id[row]}${part(hit.placed)}`, p.size[row], hit.box)
    : picture(p.img[row], `picture ${p.id[row]}`));
  const source = (hit) => el("div", { class: "frame" }, hit.source && hit.img !== null
    ? boxed(hit.img, `training image ${hit.id}${part(hit.source_placed)}`, [1, 1], hit.source)
    : picture(hit.img, `training image ${hit.id}`));
  const parts = (hit) => [hit.box ? `Fills a part of the picture: ${hit.placed}.` : null,
    hit.source_placed ? `A part of the training image: ${hit.source_placed}.` : null].filter((text) => text).join(" ");
  const scores = (hit) => figures([["p-value", pValue(hit.p_value)], ["combined", fixed(hit.combined)],
    ["descriptor", fixed(hit.score)], ["verified", fixed(hit.verified)]]);
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
    const button = event.target.closest?.("button[data-show]");
    if (button) lists[button.dataset.show]?.(button.dataset.query, button.dataset.filter);
  });

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
    if (current) current.closest("ul").scrollLeft = current.offsetLeft - 48;
  }), { rootMargin: "-30% 0px -65% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));
})();
