"use strict";
// The page keeps what is drawn and what is picked; every image comes from /ask/QUESTION.

const $ = (id) => document.getElementById(id);
const state = { about: null, images: [], picks: [], sets: { a: [], b: [], c: [] }, frames: [],
  moved: new Map(), own: [] }; // latents that are set, by number; the pick's own
const DRAGGED = "application/x-growgan-sample"; // a file that is dropped has no such thing
const MOST = { picks: 16, mixed: 12, classes: 40, morphed: 8, images: 144 }; // of an answer, the last

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "draggable") node.setAttribute(name, String(value));
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// What went wrong, by what was asked: an answer takes back its own complaint alone.
const wrong = new Map();
const GONE = "The explorer does not answer: is growgan explore still running?";

function say(about, text = "") {
  if (text) wrong.set(about, text); else wrong.delete(about);
  $("message").textContent = [...new Set(wrong.values())].join(" ");
}

// Send a request, and raise what can be told of a server that is gone, or that failed.
async function sent(address, how = {}) {
  let response;
  try { response = await fetch(address, how); } catch {
    throw new Error(GONE);
  }
  for (const [about, text] of wrong) if (text === GONE) say(about);
  if (response.ok) return response;
  const text = await response.text();
  let told = text;
  try { told = JSON.parse(text).error; } catch { /* it is plain text */ }
  throw new Error(response.status < 500 ? told : `The explorer failed (${response.status}); its terminal says why.`);
}

async function ask(question, form = {}) {
  try {
    const response = await sent(`ask/${question}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(form),
    });
    const answer = await response.json();
    say(question);
    return answer;
  } catch (error) { say(question, error.message); throw error; }
}

// Only the newest call of a tool counts, and one is on its way at a time.
function latest(work) {
  let busy = false, again = null;
  return async function run(...words) {
    if (busy) { again = words; return; }
    busy = true;
    try { await work(...words); say("page"); } catch (error) {
      if (![...wrong.values()].includes(error.message)) say("page", error.message);
    }
    busy = false;
    if (again) { const next = again; again = null; await run(...next); }
  };
}

// The whole number in a field: what is beyond its bounds is brought to them, or goes on at the other end.
function whole(id, round = false) {
  const input = $(id), least = Number(input.min), most = Number(input.max), all = most - least + 1;
  let used = Math.round(Number(input.value === "" ? input.defaultValue : input.value));
  if (round) used = ((used - least) % all + all) % all + least;
  return Math.min(most, Math.max(least, used));
}

// How the shelf is drawn: every tool asks with all of it, so that it plays with what is seen.
function drawn() {
  const cut = $("truncation").value, label = $("class").value;
  return {
    candidate: $("candidate").value || null,
    seed: whole("seed", true),
    count: whole("count"),
    truncation: cut ? Number(cut) : null,
    labels: label ? [Number(label)] : null,
  };
}

function tile(uri, text, more) {
  return make("li", {}, make("img", { src: uri, alt: text }), ...(more ? [more] : []));
}

function fill(list, uris, texts, columns) {
  list.replaceChildren(...uris.map((uri, i) => tile(uri, texts(i))));
  list.style.gridTemplateColumns = columns ? `repeat(${columns}, minmax(0, ${columns > 6 ? "1fr" : "96px"}))` : "";
}

// Tabs: arrows move, as in the ARIA pattern.

const shown = { views: "growth", tools: "vary" };

function select(tab) {
  const list = tab.parentElement;
  for (const each of list.querySelectorAll('[role="tab"]:not([hidden])')) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  shown[list.id] = tab.getAttribute("aria-controls");
  wrong.clear();
  say("page");
  refresh();
}

for (const list of document.querySelectorAll('[role="tablist"]')) {
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const tabs = [...list.querySelectorAll('[role="tab"]:not([hidden])')];
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    select(tab);
  });
}

// Growth

async function showTree() {
  const { nodes } = await ask("tree");
  $("tree").replaceChildren(...nodes.map(branch));
  const known = nodes.flatMap((node) => node.members).filter((each) => each.drawable);
  $("candidate").replaceChildren(...known.map((each) =>
    make("option", { value: each.id, selected: each.id === state.about.best }, `${each.id} (${each.size})`)));
}

function branch(node) {
  const slices = node.members.length;
  const more = [node.growth, ...(slices > 1 ? [`${slices} slices`] : []),
    ...(node.leads ? ["on the way to the best"] : [])];
  const line = make("li", {}, make("button", {
    class: `${node.leads ? "leads " : ""}${node.status}`,
    "data-id": node.id,
    "data-members": node.members.map((each) => each.id).join(" "),
    onclick: () => showCandidate(node.id),
  }, make("b", {}, `${node.id} · ${node.size} · ${node.score}`), make("small", {}, more.join(", "))));
  line.style.paddingLeft = `${Math.min(node.depth, 8) * 20}px`;
  return line;
}

const showCandidate = latest(async (id) => {
  const found = await ask("candidate", { candidate: id });
  for (const button of $("tree").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.members.split(" ").includes(found.id));
  }
  $("read").textContent = `Candidate ${found.id}, score ${found.facts.score}`;
  const facts = Object.entries(found.facts).flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, value)]);
  const layers = (name, lines) => lines.length
    ? [make("h3", {}, name), make("ol", {}, ...lines.map((line) => make("li", {}, line)))] : [];
  $("detail").replaceChildren(
    make("h2", {}, `Candidate ${found.id}`),
    make("dl", {}, ...facts),
    ...(found.samples ? [make("img", { class: "pixels", src: found.samples, alt: `samples of ${found.id}` })] : []),
    ...slicesOf(found),
    ...layers("Generator, from the latent on", found.generator),
    ...layers("Discriminator, the image end last", found.discriminator),
    ...(found.drawable ? [make("button", { onclick: () => playWith(found.id) }, "Play with it")] : []),
  );
});

// The slices that trained the same pair on, each to be looked at and played with.
function slicesOf(found) {
  if (found.members.length < 2) return [];
  const offered = (each) => make("li", {}, make("button", {
    "aria-pressed": each.id === found.id,
    onclick: async () => {
      await showCandidate(each.id);
      const now = $("detail").querySelector('.slices [aria-pressed="true"]');
      if (now) now.focus();
    },
  }, `${each.id}, score ${each.score}${each.drawable ? "" : ", weights not kept"}`));
  return [make("h3", {}, "Slices of this pair"), make("ul", { class: "slices" }, ...found.members.map(offered))];
}

function playWith(id) {
  $("candidate").value = id;
  select($("tab-play"));
  $("tab-play").focus();
  opened();
}

async function showFrames() {
  state.frames = (await ask("timelapse")).frames;
  const range = $("lapse-range");
  range.max = Math.max(0, state.frames.length - 1);
  range.value = range.max;
  showFrame();
}

function showFrame() {
  const frame = state.frames[Number($("lapse-range").value)];
  if (!frame) return;
  $("lapse-image").src = frame.samples;
  $("lapse-image").alt = `the same latents at candidate ${frame.id}`;
  $("lapse-text").textContent = `${frame.id}: ${frame.text}`;
  $("lapse-range").setAttribute("aria-valuetext", `candidate ${frame.id}`);
}

let playing = null;
$("lapse-range").addEventListener("input", showFrame);
$("lapse-play").addEventListener("click", () => {
  const range = $("lapse-range");
  clearInterval(playing);
  playing = playing || state.frames.length < 2 ? null : setInterval(() => {
    range.value = (Number(range.value) + 1) % state.frames.length;
    showFrame();
  }, 700);
  $("lapse-text").setAttribute("aria-live", playing ? "off" : "polite"); // or each would be read out
  $("lapse-play").textContent = playing ? "Stop" : "Run through";
});

// The shelf

const drawShelf = latest(async () => {
  say("take");
  const found = await ask("sample", drawn());
  state.images = found.images;
  state.labels = found.labels;
  state.picks = state.picks.filter((pick) => pick < found.images.length);
  showShelf();
  refresh();
});

function nameOf(i) {
  return `sample ${i}${state.labels && state.labels[i] ? `, ${state.labels[i]}` : ""}`;
}

function showShelf() {
  $("shelf").replaceChildren(...state.images.map((uri, i) => {
    const place = state.picks.indexOf(i);
    const button = make("button", {
      "aria-pressed": place >= 0,
      draggable: true,
      "data-index": i,
      onclick: () => pick(i),
      ondragstart: (event) => event.dataTransfer.setData(DRAGGED, String(i)),
    }, make("img", { src: uri, alt: nameOf(i), draggable: false }));
    if (place >= 0) button.append(make("span", { class: "place", "aria-hidden": true }, String(place + 1)));
    return make("li", {}, button);
  }));
  $("picked").textContent = state.picks.length ? `Picked: ${state.picks.join(", ")}.` : "Nothing is picked.";
}

function pick(i) {
  const at = state.picks.indexOf(i);
  if (at >= 0) state.picks.splice(at, 1);
  else state.picks.push(i);
  showShelf();
  $("shelf").querySelector(`[data-index="${i}"]`).focus();
  refresh();
}

function forget() {
  state.picks = [];
  for (const name of Object.keys(state.sets)) state.sets[name] = [];
  showSets();
}

for (const id of ["seed", "count"]) $(id).addEventListener("change", () => {
  $(id).value = whole(id, id === "seed");
  forget();
  drawShelf();
});
$("truncation").addEventListener("change", drawShelf);
$("class").addEventListener("change", drawShelf);
$("candidate").addEventListener("change", () => opened());
$("draw").addEventListener("submit", (event) => event.preventDefault());
$("again").addEventListener("click", () => {
  $("seed").value = whole("seed", true) + 1;
  $("seed").value = whole("seed", true);
  forget();
  drawShelf();
});
$("unpick").addEventListener("click", () => { state.picks = []; showShelf(); refresh(); });

// A candidate that is opened says what it can do.
const opened = latest(async () => {
  const about = await ask("about", { candidate: $("candidate").value || null });
  state.about = { ...about, best: state.about ? state.about.best : about.best };
  const cuts = about.mapping ? [0.25, 0.5, 0.7, 0.85] : [0.25, 0.5, 0.75, 1, 1.5, 2];
  $("truncation").replaceChildren(make("option", { value: "" }, "none"),
    ...cuts.map((cut) => make("option", { value: cut }, String(cut))));
  $("class").replaceChildren(make("option", { value: "" }, "all in turn"),
    ...about.classes.map((name, i) => make("option", { value: i }, name)));
  $("class-label").hidden = !about.classes.length;
  $("tab-vary").hidden = !about.directions.length && !about.latent;
  $("tab-mix").hidden = !about.styles;
  $("tab-morph").hidden = !about.classes.length;
  for (const id of ["vary", "mix", "morph"]) if ($(`tab-${id}`).hidden) $(id).hidden = true;
  if ($(`tab-${shown.tools}`).hidden) select($("tools").querySelector('[role="tab"]:not([hidden])'));
  $("near-hint").hidden = !about.data_given;
  $("latent").max = Math.max(0, about.latent - 1);
  $("latent").value = whole("latent");
  state.moved.clear();
  showSliders();
  showClasses();
  await drawShelf();
});

// Vary

function showSliders() {
  $("sliders").replaceChildren(...state.about.directions.map((share, i) =>
    make("div", {}, make("label", { for: `along-${i}` }, `Direction ${i + 1} (${(100 * share).toFixed(1)} % of the variance)`),
      make("input", { type: "range", id: `along-${i}`, min: -4, max: 4, step: 0.1, value: 0, oninput: drawVaried }))));
}

const drawVaried = latest(async () => {
  const pick = state.picks.length ? state.picks[state.picks.length - 1] : 0;
  if (!state.images[pick]) return;
  const along = {}, latents = Object.fromEntries(state.moved);
  state.about.directions.forEach((_, i) => {
    const amount = Number($(`along-${i}`).value);
    if (amount) along[i] = amount;
  });
  const found = await ask("vary", { ...drawn(), pick, along, latents });
  state.own = found.latents;
  showLatents();
  $("vary-before").src = state.images[pick];
  $("vary-before").alt = nameOf(pick);
  $("vary-after").src = found.images[0];
  $("vary-after").alt = `${nameOf(pick)}, moved`;
});

// The slider stands at the latent's value, the pick's own where none is set.
function showLatents() {
  const number = whole("latent"), value = state.moved.get(number) ?? state.own[number] ?? 0;
  $("latent-value").value = value;
  $("latent-own").textContent = state.own.length ? `The pick's own: ${state.own[number].toFixed(2)}` : "";
  $("latents-none").hidden = state.moved.size > 0;
  const known = [...state.moved.keys()].sort((a, b) => a - b);
  if (known.join() === $("latents-set").dataset.shown) {
    for (const button of $("latents-set").querySelectorAll("button")) button.textContent = setTo(Number(button.value));
    return;
  }
  $("latents-set").dataset.shown = known.join();
  $("latents-set").replaceChildren(...known.map((each) => make("li", {},
    make("button", { value: each, onclick: () => takeBack(each) }, setTo(each)))));
}

function setTo(number) {
  return `Take back latent ${number}: ${state.moved.get(number)}`;
}

function takeBack(number) {
  state.moved.delete(number);
  showLatents();
  ($("latents-set").querySelector("button") || $("latent")).focus();
  drawVaried();
}

$("latent-value").addEventListener("input", () => {
  state.moved.set(whole("latent"), Number($("latent-value").value));
  showLatents();
  drawVaried();
});
$("latent").addEventListener("change", () => { $("latent").value = whole("latent"); showLatents(); });
$("vary-reset").addEventListener("click", () => {
  for (const input of $("sliders").querySelectorAll("input")) input.value = 0;
  state.moved.clear();
  showLatents();
  drawVaried();
});

// Between

const drawWalk = latest(async () => {
  if (state.picks.length < 2) { $("walk-images").replaceChildren(); return; }
  const picks = state.picks.slice(0, MOST.picks);
  const fitting = Math.floor((MOST.images - 1) / (picks.length - 1)), wanted = whole("walk-steps");
  const steps = Math.min(wanted, fitting);
  $("walk-steps").value = steps;
  const found = await ask("walk", { ...drawn(), picks, steps });
  const cut = state.picks.length > picks.length ? ["The way ends at the sixteenth pick."] : [];
  if (steps < wanted) cut.push(`Between ${picks.length} picks there are at most ${steps} images a way.`);
  $("walk-cut").textContent = cut.join(" ");
  fill($("walk-images"), found.images, (i) => i % steps ? `step ${i % steps} after ${nameOf(state.picks[Math.floor(i / steps)])}`
    : nameOf(state.picks[i / steps]), Math.min(found.columns, 16));
});
$("walk-steps").addEventListener("change", drawWalk);

// Arithmetic

function showSets() {
  for (const box of document.querySelectorAll(".set")) {
    const name = box.dataset.set;
    box.querySelector("ul").replaceChildren(...state.sets[name].map((i) => make("li", {},
      make("button", { onclick: () => takeOut(name, i) },
        make("img", { src: state.images[i], alt: `take ${nameOf(i)} out` })))));
  }
}

function takeOut(name, i) {
  const place = state.sets[name].indexOf(i);
  state.sets[name].splice(place, 1);
  showSets();
  const box = document.querySelector(`.set[data-set="${name}"]`);
  const left = box.querySelectorAll("li button");
  (left[Math.min(place, left.length - 1)] || box.querySelector(".add")).focus();
  drawSum();
}

function put(name, indices) {
  const added = [...new Set([...state.sets[name], ...indices])];
  state.sets[name] = added.slice(0, MOST.picks);
  say("sets", added.length > MOST.picks ? `A set holds ${MOST.picks} samples; the others were left out.` : "");
  showSets();
  drawSum();
}

const drawSum = latest(async () => {
  const { a, b, c } = state.sets;
  if (!a.length && !b.length && !c.length) { $("sum-images").replaceChildren(); return; }
  const found = await ask("combine", { ...drawn(), plus: [a, c], minus: [b] });
  fill($("sum-images"), found.images, (i) => i ? `near the sum, ${i}` : "the sum");
});

for (const box of document.querySelectorAll(".set")) {
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    const text = event.dataTransfer.getData(DRAGGED);
    if (text && Number(text) < state.images.length) put(box.dataset.set, [Number(text)]);
  });
  box.querySelector(".add").addEventListener("click", () => put(box.dataset.set, state.picks));
}
$("sum-clear").addEventListener("click", () => {
  for (const name of Object.keys(state.sets)) state.sets[name] = [];
  showSets();
  drawSum();
});

// Styles, classes, nearest

const drawMix = latest(async () => {
  const half = Math.floor(state.picks.length / 2);
  if (!half) { $("mix-images").replaceChildren(); return; }
  const [rows, columns] = [state.picks.slice(0, half), state.picks.slice(half)].map((each) => each.slice(0, MOST.mixed));
  $("mix-cut").textContent = state.picks.length - half > MOST.mixed
    ? `A table has at most ${MOST.mixed} rows and columns: the first ${MOST.mixed} of each half are mixed.` : "";
  const found = await ask("mix", { ...drawn(), rows, columns });
  fill($("mix-images"), found.images, (i) => `coarse of ${nameOf(rows[Math.floor(i / found.columns)])}, fine of ${nameOf(columns[i % found.columns])}`, found.columns);
});

function showClasses() {
  const legend = $("morph-classes").querySelector("legend");
  $("morph-classes").replaceChildren(legend, ...state.about.classes.slice(0, MOST.classes).map((name, i) =>
    make("label", {}, make("span", {}, make("input", { type: "checkbox", value: i, checked: i < 3, onchange: drawMorph }), ` ${name}`))));
  const more = state.about.classes.length - MOST.classes;
  $("morph-cut").textContent = `The first ${MOST.classes} classes; ${more} more are not shown. growgan sample --morph takes all.`;
  $("morph-cut").hidden = more <= 0;
}

const drawMorph = latest(async () => {
  const labels = [...$("morph-classes").querySelectorAll("input:checked")].map((box) => Number(box.value));
  if (labels.length > MOST.morphed) { say("morph", `Choose ${MOST.morphed} classes at most.`); return; }
  say("morph");
  if (labels.length < 2) { $("morph-images").replaceChildren(); return; }
  const rows = 4, steps = Math.min(6, Math.floor((MOST.images / rows - 1) / (labels.length - 1)));
  const found = await ask("morph", { ...drawn(), labels, rows, steps });
  fill($("morph-images"), found.images, (i) => `row ${Math.floor(i / found.columns) + 1}, step ${i % found.columns + 1}`, found.columns);
});

const drawNearest = latest(async () => {
  const pick = state.picks.length ? state.picks[state.picks.length - 1] : 0;
  if (!state.about.data_given) {
    $("near-images").replaceChildren(make("li", {}, "Start the explorer with --data DATA to see them."));
    return;
  }
  const found = await ask("nearest", { ...drawn(), pick });
  $("near-images").replaceChildren(tile(found.sample, nameOf(pick), make("span", {}, "the sample")),
    ...found.images.map((uri, i) => tile(uri, `training image, ${i + 1} nearest`, make("span", {}, `distance ${found.distances[i]}`))));
});

const KINDS = [
  ["png", "These samples as one PNG sheet"],
  ["npz", "These samples as an npz file: images, labels"],
  ["safetensors", "The generator: safetensors, spec and model card (zip)"],
  ["onnx", "The generator as ONNX, with them (zip)"],
  ["torchscript", "The generator as TorchScript, with them (zip)"],
];

function showLinks() {
  if ($("take-links").children.length) return;
  $("take-links").replaceChildren(...KINDS.map(([kind, text]) =>
    make("li", {}, make("button", { onclick: (event) => download(kind, event.currentTarget, text) }, text))));
}

async function download(kind, button, text) {
  const words = Object.entries(drawn()).filter(([, value]) => value !== null);
  button.textContent = "Writing ...";
  button.disabled = true;
  try {
    const response = await sent(`take/${kind}?${new URLSearchParams(words)}`);
    const named = response.headers.get("Content-Disposition");
    const full = named.match(/filename\*=UTF-8''(.*)$/);
    const href = URL.createObjectURL(await response.blob());
    make("a", { href, download: full ? decodeURIComponent(full[1]) : named.match(/"(.*)"/)[1] }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    say("take");
  } catch (error) { say("take", error.message); }
  button.textContent = text;
  button.disabled = false;
  button.focus();
}

// What depends on the picks is drawn where it can be seen.
const tools = {
  vary: () => drawVaried(), walk: () => drawWalk(), sum: () => { showSets(); drawSum(); }, mix: () => drawMix(),
  morph: () => drawMorph(), near: () => drawNearest(), take: () => showLinks(),
};
function refresh() {
  if (shown.views === "play" && state.images.length) tools[shown.tools]();
}

async function start() {
  state.about = await ask("about");
  document.title = `${state.about.name} · growgan explorer`;
  $("name").textContent = state.about.name;
  $("facts").textContent = Object.entries(state.about.facts).map(([name, value]) => `${name}: ${value}`).join(" · ");
  await showTree();
  await showCandidate(state.about.best);
  await showFrames();
  await opened();
  document.body.dataset.ready = "1";
}
start().catch((error) => say("page", error.message));
