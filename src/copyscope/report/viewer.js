// Marks of people on pairs and groups, and the viewer that enlarges a pair.

// Kept where the browser lets a local file keep anything; else until the page is closed. An image is named by the digest
// of its file where it is known, and by its id.
const marks = (() => {
  const key = `copyscope-marks-${document.body.dataset.result}`;
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(key)) ?? {}; } catch { /* no storage here */ }
  const name = (images) => JSON.stringify(images.map(({ id, sha256 }) => sha256 ?? id));
  const panel = document.querySelector("[data-marks]");
  const lines = () => Object.values(kept).filter((mark) => mark.verdict).map((mark) => `${JSON.stringify({
    verdict: mark.verdict,
    images: mark.verdict === "licensed" ? mark.licensed : mark.images,
    when: mark.when,
    ...(mark.why ? { why: mark.why } : {}),
  })}\n`);
  const show = () => {
    if (!panel) return;
    const found = lines(), notes = Object.keys(kept).length - found.length;
    panel.hidden = !found.length && !notes;
    panel.querySelector("[data-said]").textContent = `${many(found.length, "mark", "marks")} of yours`
      + (notes ? `, and ${many(notes, "note", "notes")} without a mark, which the file leaves out` : "");
    panel.querySelector("pre").textContent = found.join("");
  };
  const write = () => {
    try { localStorage.setItem(key, JSON.stringify(kept)); } catch { /* no storage here */ }
    show();
  };
  panel?.querySelector("[data-save]").addEventListener("click", () => saveFile("decisions.jsonl", lines().join(""), "application/x-ndjson"));
  panel?.querySelector("[data-forget]").addEventListener("click", () => {
    kept = {};
    write();
    Object.values(lists).forEach((one) => one.refresh());
  });
  show();
  return {
    of: (images) => kept[name(images)] ?? { verdict: "", why: "" },
    set: (images, licensed, change) => {
      const mark = { ...(kept[name(images)] ?? { verdict: "", why: "" }), ...change };
      if (mark.verdict || mark.why) kept[name(images)] = { ...mark, images, licensed, when: `${new Date().toISOString().slice(0, 19)}Z` };
      else delete kept[name(images)];
      write();
    },
  };
})();
const named = (id, sha256) => (sha256 ? { id, sha256 } : { id });

// Buttons to mark images: of a pair, `licensed` is the training image alone.
const VERDICTS = { same: "The same picture", different: "Another picture", licensed: "Licensed: no harm" };
const marker = (images, licensed) => {
  const buttons = Object.entries(VERDICTS).map(([verdict, text]) => {
    const button = el("button", { type: "button", "aria-pressed": String(marks.of(images).verdict === verdict) }, text);
    button.addEventListener("click", () => {
      const now = marks.of(images).verdict === verdict ? "" : verdict;
      marks.set(images, licensed, { verdict: now });
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(now !== "" && other === button)));
    });
    return button;
  });
  const text = el("input", { type: "text", placeholder: "Note", "aria-label": "Note", autocomplete: "off" });
  text.value = marks.of(images).why;
  text.addEventListener("input", () => marks.set(images, licensed, { why: text.value }));
  return el("div", { class: "marker", role: "group", "aria-label": "Your mark" }, ...buttons, text);
};

// The viewer: two pictures as large as the window, one over the other with a slider, or their difference.
const viewer = (() => {
  let pairs = [], at = 0, view = "side";
  const title = el("h2", { id: "viewer-title" });
  const views = ["side", "slider", "difference"].map((name) => {
    const text = { side: "Side by side", slider: "Slider (s)", difference: "Difference (d)" }[name];
    const button = el("button", { type: "button", "data-view": name }, text);
    button.addEventListener("click", () => look(name));
    return button;
  });
  const step = (by, text, said) => {
    const button = el("button", { type: "button", "aria-label": said }, text);
    button.addEventListener("click", () => go(by));
    return button;
  };
  const [back, forth] = [step(-1, "←", "Previous pair"), step(1, "→", "Next pair")];
  const close = el("button", { type: "button" }, "Close");
  const stage = el("div", { class: "stage" }), below = el("div", { class: "below" });
  const box = el("dialog", { id: "viewer", "aria-labelledby": "viewer-title" },
    el("div", { class: "bar-of-viewer" }, title, back, forth, ...views, close), stage, below);
  close.addEventListener("click", () => box.close());
  document.body.append(box);

  const shown = ({ place, title: text, id }) => el("figure", {}, el("div", { class: "frame" }, picture(place, `${text} ${id}`)),
    el("figcaption", {}, el("b", {}, text), " ", el("bdi", { class: "id" }, id)));
  const stacked = ({ left, right }) => {
    const upper = picture(left.place, `${left.title} ${left.id}`, "upper");
    const frame = el("div", { class: `frame both ${view}` }, picture(right.place, `${right.title} ${right.id}`), upper);
    if (view === "difference") return [el("figure", {}, frame, el("figcaption", {}, "Black where both agree. Both are stretched to one shape."))];
    const slider = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": `${left.title} on the left, ${right.title} on the right` });
    const cut = () => { upper.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
    slider.addEventListener("input", cut);
    cut();
    return [el("figure", {}, frame, el("div", { class: "fade" }, el("span", {}, left.title), slider, el("span", {}, right.title)))];
  };
  const draw = () => {
    const pair = pairs[at]();
    title.textContent = `Pair ${count(at + 1)} of ${count(pairs.length)}`;
    back.disabled = at === 0;
    forth.disabled = at === pairs.length - 1;
    views.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
    stage.replaceChildren(...(view === "side" ? [shown(pair.left), shown(pair.right)] : stacked(pair)));
    stage.className = `stage ${view}`;
    below.replaceChildren(figures(pair.facts), ...(pair.images ? [marker(pair.images, pair.licensed)] : []));
  };
  const look = (name) => {
    view = view === name && name !== "side" ? "side" : name;
    draw();
  };
  const go = (by) => {
    const next = Math.min(Math.max(at + by, 0), pairs.length - 1);
    if (next === at) return;
    at = next;
    draw();
  };
  box.addEventListener("keydown", (event) => {
    const typing = event.target.type === "text", sliding = event.target.type === "range";
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { ArrowLeft: sliding ? null : () => go(-1), ArrowRight: sliding ? null : () => go(1), d: () => look("difference"), s: () => look("slider") }[event.key];
    if (!act) return;
    act();
    event.preventDefault();
    if (!box.contains(document.activeElement)) close.focus();
  });
  // Marks show on the cards too; the focus, which the browser gave back to the card, stays there.
  box.addEventListener("close", () => {
    const card = document.activeElement?.closest?.("[data-zoom]"), rows = card?.closest("[id$='-rows']");
    Object.values(lists).forEach((one) => one.refresh());
    rows?.querySelector(`[data-zoom="${card.dataset.zoom}"]`)?.focus();
  });
  return {
    open: (found, first) => {
      if (!found.length || !box.showModal) return;
      [pairs, at] = [found, Math.max(first, 0)];
      draw();
      box.showModal();
    },
  };
})();
