"use strict";
// The page keeps the current samples and the selection. All images come from /api/ENDPOINT.

const $ = (id) => document.getElementById(id);
const state = {
  about: null, // the response of the endpoint "about"
  images: [], // data URIs of the samples
  labels: [], // class names of the samples; empty without classes
  selection: [], // indices of samples, in the order in which they were selected
  sets: { a: [], b: [], c: [] }, // indices of samples, for latent arithmetic
  frames: [], // of the time lapse
  overrides: new Map(), // values of latent dimensions
  latent: [], // latent of the edited sample, before the edit
};
const activeTabs = { views: "growth", tools: "edit" };
const DRAG_TYPE = "application/x-growgan-sample"; // a dropped file has another type
const MAX_STYLE_MIX_ROWS = 12; // the square root of the number of images in a response
const MAX_CLASS_CHOICES = 40;
const CLASS_INTERPOLATION_ROWS = 4;
const MAX_CLASS_INTERPOLATION_STEPS = 6;
const TIMELAPSE_INTERVAL_MS = 700;
const NO_RESPONSE = "The explorer server is not responding. Is growgan explore still running?";

function makeElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "draggable") element.setAttribute(name, String(value));
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// Errors by their source, so that a success only clears the error of the same source.
const errorsBySource = new Map();

function showError(source, text = "") {
  if (text) errorsBySource.set(source, text); else errorsBySource.delete(source);
  $("message").textContent = [...new Set(errorsBySource.values())].join(" ");
}

// Fetch, and throw an error with a message for the user if the response is not OK.
async function fetchOk(url, options = {}) {
  let response;
  try { response = await fetch(url, options); } catch {
    throw new Error(NO_RESPONSE);
  }
  for (const [source, text] of errorsBySource) if (text === NO_RESPONSE) showError(source);
  if (response.ok) return response;
  const body = await response.text();
  let message = body;
  try { message = JSON.parse(body).error; } catch { /* plain text */ }
  throw new Error(response.status < 500 ? message
    : `The explorer failed (${response.status}). See its terminal for the reason.`);
}

async function callApi(endpoint, params = {}) {
  try {
    const response = await fetchOk(`api/${endpoint}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(params),
    });
    const result = await response.json();
    showError(endpoint);
    return result;
  } catch (error) { showError(endpoint, error.message); throw error; }
}

// Run one call of a function at a time. Of the calls in between, only run the last one.
function coalesce(func) {
  let busy = false, pendingArgs = null;
  return async function run(...args) {
    if (busy) { pendingArgs = args; return; }
    busy = true;
    try { await func(...args); showError("page"); } catch (error) {
      if (![...errorsBySource.values()].includes(error.message)) showError("page", error.message);
    }
    busy = false;
    if (pendingArgs) { const nextArgs = pendingArgs; pendingArgs = null; await run(...nextArgs); }
  };
}

// Read an integer from a field. Clamp it to the range of the field, or wrap around.
function readInteger(id, wrap = false) {
  const input = $(id), min = Number(input.min), max = Number(input.max), size = max - min + 1;
  let value = Math.round(Number(input.value === "" ? input.defaultValue : input.value));
  if (wrap) value = ((value - min) % size + size) % size + min;
  return Math.min(max, Math.max(min, value));
}

// The arguments that identify the current samples. Every tool sends them with its request.
function sampleParams() {
  const truncation = $("truncation").value, label = $("class").value;
  return {
    candidate: $("candidate").value || null,
    seed: readInteger("seed", true),
    count: readInteger("count"),
    truncation: truncation ? Number(truncation) : null,
    labels: label ? [Number(label)] : null,
  };
}

function lastSelected() {
  return state.selection.length ? state.selection[state.selection.length - 1] : 0;
}

function sampleName(index) {
  return `sample ${index}${state.labels[index] ? `, ${state.labels[index]}` : ""}`;
}

function makeTile(uri, alt, ...children) {
  return makeElement("li", {}, makeElement("img", { src: uri, alt }), ...children);
}

function fillTiles(list, uris, describe, columns) {
  list.replaceChildren(...uris.map((uri, i) => makeTile(uri, describe(i))));
  const width = columns > 6 ? "1fr" : "96px";
  list.style.gridTemplateColumns = columns ? `repeat(${columns}, minmax(0, ${width}))` : "";
}

// Tabs. The arrow keys move between them, as in the ARIA pattern.

function selectTab(selectedTab) {
  const list = selectedTab.parentElement;
  for (const tab of list.querySelectorAll('[role="tab"]:not([hidden])')) {
    const isSelected = tab === selectedTab;
    tab.setAttribute("aria-selected", isSelected);
    tab.tabIndex = isSelected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isSelected;
  }
  activeTabs[list.id] = selectedTab.getAttribute("aria-controls");
  errorsBySource.clear();
  showError("page");
  updateTool();
}

for (const list of document.querySelectorAll('[role="tablist"]')) {
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) selectTab(tab);
  });
  list.addEventListener("keydown", (event) => {
    const tabs = [...list.querySelectorAll('[role="tab"]:not([hidden])')];
    const current = tabs.indexOf(document.activeElement);
    const target = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (target === undefined || current < 0) return;
    event.preventDefault();
    const tab = tabs[(target + tabs.length) % tabs.length];
    tab.focus();
    selectTab(tab);
  });
}

// Growth

async function showTree() {
  const { nodes } = await callApi("tree");
  $("tree").replaceChildren(...nodes.map(makeTreeRow));
  const candidates = nodes.flatMap((node) => node.segments).filter((segment) => segment.has_weights);
  $("candidate").replaceChildren(...candidates.map(({ id, resolution }) =>
    makeElement("option", { value: id, selected: id === state.about.best_id }, `${id} (${resolution})`)));
}

function makeTreeRow(node) {
  const details = [node.growth];
  if (node.segments.length > 1) details.push(`${node.segments.length} segments`);
  if (node.on_best_lineage) details.push(node.status === "best" ? "best candidate" : "ancestor of the best candidate");
  const row = makeElement("li", {}, makeElement("button", {
    class: `${node.on_best_lineage ? "best-lineage " : ""}${node.status}`,
    "data-id": node.id,
    "data-segments": node.segments.map((segment) => segment.id).join(" "),
    onclick: () => showCandidate(node.id),
  }, makeElement("b", {}, `${node.id} · ${node.resolution} · ${node.score}`), makeElement("small", {}, details.join(", "))));
  row.style.paddingLeft = `${Math.min(node.depth, 8) * 20}px`;
  return row;
}

const showCandidate = coalesce(async (id) => {
  const candidate = await callApi("candidate", { candidate: id });
  for (const button of $("tree").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.segments.split(" ").includes(candidate.id));
  }
  $("announcement").textContent = `Candidate ${candidate.id}, score ${candidate.facts.score}`;
  const facts = Object.entries(candidate.facts).flatMap(([name, value]) =>
    [makeElement("dt", {}, name), makeElement("dd", {}, value)]);
  const makeLayerList = (title, lines) => lines.length
    ? [makeElement("h3", {}, title), makeElement("ol", {}, ...lines.map((line) => makeElement("li", {}, line)))] : [];
  const sheet = { class: "pixels", src: candidate.sample_sheet, alt: `samples of candidate ${candidate.id}` };
  $("detail").replaceChildren(
    makeElement("h2", {}, `Candidate ${candidate.id}`),
    makeElement("dl", {}, ...facts),
    ...(candidate.sample_sheet ? [makeElement("img", sheet)] : []),
    ...makeSegmentList(candidate),
    ...makeLayerList("Generator, from the latent to the image", candidate.generator),
    ...makeLayerList("Discriminator, from the score to the image", candidate.discriminator),
    ...(candidate.has_weights
      ? [makeElement("button", { onclick: () => useGenerator(candidate.id) }, "Use this generator")] : []),
  );
});

// The training segments of the same networks. Each is a candidate of its own.
function makeSegmentList(candidate) {
  if (candidate.segments.length < 2) return [];
  const makeSegment = (segment) => makeElement("li", {}, makeElement("button", {
    "aria-pressed": segment.id === candidate.id,
    onclick: async () => {
      await showCandidate(segment.id);
      const pressed = $("detail").querySelector('.chips [aria-pressed="true"]');
      if (pressed) pressed.focus();
    },
  }, `${segment.id}, score ${segment.score}${segment.has_weights ? "" : ", weights deleted"}`));
  return [makeElement("h3", {}, "Training segments of these networks"),
    makeElement("ul", { class: "chips" }, ...candidate.segments.map(makeSegment))];
}

function useGenerator(id) {
  $("candidate").value = id;
  selectTab($("tab-generate"));
  $("tab-generate").focus();
  openCandidate();
}

async function loadTimelapse() {
  state.frames = (await callApi("timelapse")).frames;
  const range = $("timelapse-frame");
  range.max = Math.max(0, state.frames.length - 1);
  range.value = range.max;
  showFrame();
}

function showFrame() {
  const frame = state.frames[Number($("timelapse-frame").value)];
  if (!frame) return;
  $("timelapse-image").src = frame.sample_sheet;
  $("timelapse-image").alt = `the same latents in candidate ${frame.id}`;
  $("timelapse-caption").textContent = `${frame.id}: ${frame.caption}`;
  $("timelapse-frame").setAttribute("aria-valuetext", `candidate ${frame.id}`);
}

let timelapseTimer = null;
$("timelapse-frame").addEventListener("input", showFrame);
$("timelapse-play").addEventListener("click", () => {
  const range = $("timelapse-frame");
  clearInterval(timelapseTimer);
  timelapseTimer = timelapseTimer || state.frames.length < 2 ? null : setInterval(() => {
    range.value = (Number(range.value) + 1) % state.frames.length;
    showFrame();
  }, TIMELAPSE_INTERVAL_MS);
  // Otherwise screen readers would read out every frame.
  $("timelapse-caption").setAttribute("aria-live", timelapseTimer ? "off" : "polite");
  $("timelapse-play").textContent = timelapseTimer ? "Stop" : "Play";
});

// Samples

const updateSamples = coalesce(async () => {
  showError("download");
  const { images, labels } = await callApi("sample", sampleParams());
  state.images = images;
  state.labels = labels;
  state.selection = state.selection.filter((index) => index < images.length);
  showSamples();
  updateTool();
});

function showSamples() {
  $("samples").replaceChildren(...state.images.map((uri, index) => {
    const position = state.selection.indexOf(index);
    const button = makeElement("button", {
      "aria-pressed": position >= 0,
      draggable: true,
      "data-index": index,
      onclick: () => toggleSelected(index),
      ondragstart: (event) => event.dataTransfer.setData(DRAG_TYPE, String(index)),
    }, makeElement("img", { src: uri, alt: sampleName(index), draggable: false }));
    if (position >= 0) {
      button.append(makeElement("span", { class: "badge", "aria-hidden": true }, String(position + 1)));
    }
    return makeElement("li", {}, button);
  }));
  $("selection").textContent = state.selection.length
    ? `Selected: ${state.selection.join(", ")}.` : "No samples selected.";
}

function toggleSelected(index) {
  const position = state.selection.indexOf(index);
  if (position >= 0) state.selection.splice(position, 1);
  else state.selection.push(index);
  showSamples();
  $("samples").querySelector(`[data-index="${index}"]`).focus();
  updateTool();
}

// Forget the indices of samples that no longer exist.
function clearSelectionAndSets() {
  state.selection = [];
  for (const name of Object.keys(state.sets)) state.sets[name] = [];
  showSets();
}

for (const id of ["seed", "count"]) $(id).addEventListener("change", () => {
  $(id).value = readInteger(id, id === "seed");
  clearSelectionAndSets();
  updateSamples();
});
$("truncation").addEventListener("change", updateSamples);
$("class").addEventListener("change", updateSamples);
$("candidate").addEventListener("change", () => openCandidate());
$("sample-form").addEventListener("submit", (event) => event.preventDefault());
$("resample").addEventListener("click", () => {
  $("seed").value = readInteger("seed", true) + 1;
  $("seed").value = readInteger("seed", true);
  clearSelectionAndSets();
  updateSamples();
});
$("clear-selection").addEventListener("click", () => { state.selection = []; showSamples(); updateTool(); });

// Show the options and the tools that a candidate supports, then its samples.
const openCandidate = coalesce(async () => {
  const about = await callApi("about", { candidate: $("candidate").value || null });
  state.about = { ...about, best_id: state.about ? state.about.best_id : about.best_id };
  const truncations = about.has_mapping ? [0.25, 0.5, 0.7, 0.85] : [0.25, 0.5, 0.75, 1, 1.5, 2];
  $("truncation").replaceChildren(makeElement("option", { value: "" }, "none"),
    ...truncations.map((value) => makeElement("option", { value }, String(value))));
  $("class").replaceChildren(makeElement("option", { value: "" }, "all in turn"),
    ...about.classes.map((name, label) => makeElement("option", { value: label }, name)));
  $("class-label").hidden = !about.classes.length;
  $("tab-edit").hidden = !about.explained_variance_ratio.length && !about.latent_dim;
  $("tab-style-mix").hidden = !about.num_styles;
  $("tab-classes").hidden = !about.classes.length;
  for (const id of ["edit", "style-mix", "classes"]) if ($(`tab-${id}`).hidden) $(id).hidden = true;
  if ($(`tab-${activeTabs.tools}`).hidden) selectTab($("tools").querySelector('[role="tab"]:not([hidden])'));
  $("nearest-hint").hidden = !about.has_data;
  $("dimension").max = Math.max(0, about.latent_dim - 1);
  $("dimension").value = readInteger("dimension");
  state.overrides.clear();
  showDirections();
  showClassChoices();
  await updateSamples();
});

// Edit latent

function showDirections() {
  $("directions").replaceChildren(...state.about.explained_variance_ratio.map((ratio, i) =>
    makeElement("div", {},
      makeElement("label", { for: `direction-${i}` }, `Direction ${i + 1} (${(100 * ratio).toFixed(1)}% of the variance)`),
      makeElement("input", { type: "range", id: `direction-${i}`, min: -4, max: 4, step: 0.1, value: 0, oninput: updateEdit }))));
}

const updateEdit = coalesce(async () => {
  const index = lastSelected();
  if (!state.images[index]) return;
  const directionOffsets = {};
  state.about.explained_variance_ratio.forEach((_, i) => {
    const offset = Number($(`direction-${i}`).value);
    if (offset) directionOffsets[i] = offset;
  });
  const { images, latent } = await callApi("edit_latent", {
    ...sampleParams(),
    index,
    direction_offsets: directionOffsets,
    latent_values: Object.fromEntries(state.overrides),
  });
  state.latent = latent;
  showOverrides();
  $("edit-before").src = state.images[index];
  $("edit-before").alt = sampleName(index);
  $("edit-after").src = images[0];
  $("edit-after").alt = `${sampleName(index)}, edited`;
});

// The slider shows the value of the dimension: the changed one, or that of the sample.
function showOverrides() {
  const dimension = readInteger("dimension");
  const value = state.overrides.get(dimension) ?? state.latent[dimension] ?? 0;
  $("dimension-value").value = value;
  $("original-value").textContent = state.latent.length ? `Original value: ${state.latent[dimension].toFixed(2)}` : "";
  $("no-overrides").hidden = state.overrides.size > 0;
  const dimensions = [...state.overrides.keys()].sort((a, b) => a - b);
  // Keep the buttons if they are the same ones, so that the focus stays.
  if (dimensions.join() === $("overrides").dataset.dimensions) {
    for (const button of $("overrides").querySelectorAll("button")) {
      button.textContent = overrideLabel(Number(button.value));
    }
    return;
  }
  $("overrides").dataset.dimensions = dimensions.join();
  $("overrides").replaceChildren(...dimensions.map((d) => makeElement("li", {},
    makeElement("button", { value: d, onclick: () => resetDimension(d) }, overrideLabel(d)))));
}

function overrideLabel(dimension) {
  return `Reset dimension ${dimension}: ${state.overrides.get(dimension)}`;
}

function resetDimension(dimension) {
  state.overrides.delete(dimension);
  showOverrides();
  ($("overrides").querySelector("button") || $("dimension")).focus();
  updateEdit();
}

$("dimension-value").addEventListener("input", () => {
  state.overrides.set(readInteger("dimension"), Number($("dimension-value").value));
  showOverrides();
  updateEdit();
});
$("dimension").addEventListener("change", () => { $("dimension").value = readInteger("dimension"); showOverrides(); });
$("edit-reset").addEventListener("click", () => {
  for (const input of $("directions").querySelectorAll("input")) input.value = 0;
  state.overrides.clear();
  showOverrides();
  updateEdit();
});

// Interpolate

const updateInterpolation = coalesce(async () => {
  if (state.selection.length < 2) { $("interpolate-images").replaceChildren(); return; }
  const limits = state.about.limits;
  const indices = state.selection.slice(0, limits.indices);
  const maxSteps = Math.floor((limits.images - 1) / (indices.length - 1));
  const requestedSteps = readInteger("interpolate-steps");
  const steps = Math.min(requestedSteps, maxSteps);
  $("interpolate-steps").value = steps;
  const { images, columns } = await callApi("interpolate", { ...sampleParams(), indices, steps });
  const notes = [];
  if (state.selection.length > indices.length) {
    notes.push(`At most ${limits.indices} samples can be interpolated; the others are left out.`);
  }
  if (steps < requestedSteps) notes.push(`At most ${steps} images per segment for ${indices.length} samples.`);
  $("interpolate-note").textContent = notes.join(" ");
  fillTiles($("interpolate-images"), images, (i) => i % steps
    ? `step ${i % steps} after ${sampleName(indices[Math.floor(i / steps)])}`
    : sampleName(indices[i / steps]), Math.min(columns, 16));
});
$("interpolate-steps").addEventListener("change", updateInterpolation);

// Latent arithmetic

function showSets() {
  for (const box of document.querySelectorAll(".set")) {
    const name = box.dataset.set;
    box.querySelector("ul").replaceChildren(...state.sets[name].map((index) => makeElement("li", {},
      makeElement("button", { onclick: () => removeFromSet(name, index) },
        makeElement("img", { src: state.images[index], alt: `remove ${sampleName(index)}` })))));
  }
}

function removeFromSet(name, index) {
  const position = state.sets[name].indexOf(index);
  state.sets[name].splice(position, 1);
  showSets();
  const box = document.querySelector(`.set[data-set="${name}"]`);
  const buttons = box.querySelectorAll("li button");
  (buttons[Math.min(position, buttons.length - 1)] || box.querySelector(".add")).focus();
  updateArithmetic();
}

function addToSet(name, indices) {
  const maxIndices = state.about.limits.indices;
  const union = [...new Set([...state.sets[name], ...indices])];
  state.sets[name] = union.slice(0, maxIndices);
  showError("sets", union.length > maxIndices
    ? `A set holds at most ${maxIndices} samples. The others were left out.` : "");
  showSets();
  updateArithmetic();
}

const updateArithmetic = coalesce(async () => {
  const { a, b, c } = state.sets;
  if (!a.length && !b.length && !c.length) { $("arithmetic-images").replaceChildren(); return; }
  const { images } = await callApi("latent_arithmetic", { ...sampleParams(), plus: [a, c], minus: [b] });
  fillTiles($("arithmetic-images"), images, (i) => i ? `image ${i} near the result` : "the result");
});

for (const box of document.querySelectorAll(".set")) {
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    const text = event.dataTransfer.getData(DRAG_TYPE);
    if (text && Number(text) < state.images.length) addToSet(box.dataset.set, [Number(text)]);
  });
  box.querySelector(".add").addEventListener("click", () => addToSet(box.dataset.set, state.selection));
}
$("arithmetic-clear").addEventListener("click", () => {
  for (const name of Object.keys(state.sets)) state.sets[name] = [];
  showSets();
  updateArithmetic();
});

// Style mixing

const updateStyleMix = coalesce(async () => {
  const half = Math.floor(state.selection.length / 2);
  if (!half) { $("style-mix-images").replaceChildren(); return; }
  const rows = state.selection.slice(0, half).slice(0, MAX_STYLE_MIX_ROWS);
  const columns = state.selection.slice(half).slice(0, MAX_STYLE_MIX_ROWS);
  $("style-mix-note").textContent = state.selection.length - half > MAX_STYLE_MIX_ROWS
    ? `At most ${MAX_STYLE_MIX_ROWS} rows and columns: only the first ${MAX_STYLE_MIX_ROWS} samples of each half are used.` : "";
  const result = await callApi("style_mix", { ...sampleParams(), row_indices: rows, column_indices: columns });
  fillTiles($("style-mix-images"), result.images, (i) => {
    const row = sampleName(rows[Math.floor(i / result.columns)]);
    const column = sampleName(columns[i % result.columns]);
    return `coarse styles of ${row}, fine styles of ${column}`;
  }, result.columns);
});

// Classes

function showClassChoices() {
  const legend = $("class-choices").querySelector("legend");
  const names = state.about.classes.slice(0, MAX_CLASS_CHOICES);
  $("class-choices").replaceChildren(legend, ...names.map((name, label) => makeElement("label", {}, makeElement("span", {},
    makeElement("input", { type: "checkbox", value: label, checked: label < 3, onchange: updateClasses }), ` ${name}`))));
  const numHidden = state.about.classes.length - MAX_CLASS_CHOICES;
  $("classes-note").textContent = `Only the first ${MAX_CLASS_CHOICES} classes are listed; ${numHidden} more are not. `
    + "growgan sample --interpolate-classes accepts all of them.";
  $("classes-note").hidden = numHidden <= 0;
}

const updateClasses = coalesce(async () => {
  const { images: maxImages, interpolated_classes: maxClasses } = state.about.limits;
  const labels = [...$("class-choices").querySelectorAll("input:checked")].map((box) => Number(box.value));
  if (labels.length > maxClasses) { showError("classes", `Choose at most ${maxClasses} classes.`); return; }
  showError("classes");
  if (labels.length < 2) { $("classes-images").replaceChildren(); return; }
  const rows = CLASS_INTERPOLATION_ROWS;
  const steps = Math.min(MAX_CLASS_INTERPOLATION_STEPS, Math.floor((maxImages / rows - 1) / (labels.length - 1)));
  const { images, columns } = await callApi("interpolate_classes", { ...sampleParams(), labels, rows, steps });
  fillTiles($("classes-images"), images, (i) => `row ${Math.floor(i / columns) + 1}, step ${i % columns + 1}`, columns);
});

// Nearest images

const updateNearest = coalesce(async () => {
  const index = lastSelected();
  if (!state.about.has_data) {
    $("nearest-images").replaceChildren(makeElement("li", {}, "To see them, start the explorer with --data DATA."));
    return;
  }
  const { sample, images, distances } = await callApi("nearest_images", { ...sampleParams(), index });
  $("nearest-images").replaceChildren(
    makeTile(sample, sampleName(index), makeElement("span", {}, "the sample")),
    ...images.map((uri, i) => makeTile(uri, `training image, nearest number ${i + 1}`,
      makeElement("span", {}, `distance ${distances[i]}`))));
});

// Download

const DOWNLOADS = [
  ["png", "These samples as one PNG image"],
  ["npz", "These samples as an npz file with images and labels"],
  ["safetensors", "The generator as safetensors, with spec and model card (zip)"],
  ["onnx", "The generator as ONNX, with spec and model card (zip)"],
  ["torchscript", "The generator as TorchScript, with spec and model card (zip)"],
];

function showDownloads() {
  if ($("download-links").children.length) return;
  $("download-links").replaceChildren(...DOWNLOADS.map(([kind, text]) => makeElement("li", {},
    makeElement("button", { onclick: (event) => download(kind, event.currentTarget, text) }, text))));
}

async function download(kind, button, text) {
  const query = Object.entries(sampleParams()).filter(([, value]) => value !== null);
  button.textContent = "Preparing ...";
  button.disabled = true;
  try {
    const response = await fetchOk(`download/${kind}?${new URLSearchParams(query)}`);
    const disposition = response.headers.get("Content-Disposition");
    const fullName = disposition.match(/filename\*=UTF-8''(.*)$/);
    const fileName = fullName ? decodeURIComponent(fullName[1]) : disposition.match(/"(.*)"/)[1];
    const href = URL.createObjectURL(await response.blob());
    makeElement("a", { href, download: fileName }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    showError("download");
  } catch (error) { showError("download", error.message); }
  button.textContent = text;
  button.disabled = false;
  button.focus();
}

// Only the visible tool is updated.
const updateByTool = {
  edit: () => updateEdit(),
  interpolate: () => updateInterpolation(),
  arithmetic: () => { showSets(); updateArithmetic(); },
  "style-mix": () => updateStyleMix(),
  classes: () => updateClasses(),
  nearest: () => updateNearest(),
  download: () => showDownloads(),
};
function updateTool() {
  if (activeTabs.views === "generate" && state.images.length) updateByTool[activeTabs.tools]();
}

async function start() {
  state.about = await callApi("about");
  document.title = `${state.about.name} · growgan explorer`;
  $("name").textContent = state.about.name;
  $("facts").textContent = Object.entries(state.about.facts).map(([name, value]) => `${name}: ${value}`).join(" · ");
  await showTree();
  await showCandidate(state.about.best_id);
  await loadTimelapse();
  await openCandidate();
  document.body.dataset.ready = "1";
}
start().catch((error) => showError("page", error.message));
