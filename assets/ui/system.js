// The machine, the weights and the settings. It is looked up while somebody looks at it, and only then.
const { make, minutes, look, wear } = window.studio;
const find = (selector) => element.querySelector(selector);
const [trouble, errandBox, dialog] = [find(".ovi-trouble"), find(".ovi-errand"), find("dialog")];
const GB = 2 ** 30;
let weights = null;
let errand = null;
let report = "";

async function ask(name, data = {}) {
  let answer;
  try {
    answer = await server[name](data);
  } catch {
    answer = { problem: "The server does not answer. Try again in a moment." };
  }
  say(answer.problem || "");
  return answer.problem ? null : answer;
}

function say(problem) {
  trouble.hidden = !problem;
  trouble.textContent = problem;
}

// Memory by 2^30, as it is sold; disks and downloads by 10^9.
const gigabytes = (bytes) => (bytes < GB / 10 ? `${Math.round(bytes / 2 ** 20)} MB` : `${(bytes / GB).toFixed(1)} GB`);
function size(bytes) {
  if (bytes < 1e6) return `${Math.max(bytes > 0 ? 1 : 0, Math.round(bytes / 1e3))} KB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
const chip = (state, text) => make("span", { class: "ovi-chip", "data-state": state }, text);
const link = (href, text) => (/^https:\/\//.test(href) ? make("a", { href, target: "_blank", rel: "noopener noreferrer" }, text) : make("span", {}, text));

// --- The machine --------------------------------------------------------------------------------------------

function meter(title, hint, used, total, words) {
  const share = total ? Math.min(100, (100 * used) / total) : 0;
  return make("div", { class: "ovi-gauge" },
    make("div", {}, make("b", {}, title), make("span", {}, words)),
    make("div", { class: "ovi-bar", role: "meter", "aria-label": title, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": Math.round(share), "aria-valuetext": words },
      make("span", { style: `width:${share}%`, class: share > 92 ? "ovi-full" : "" })),
    hint ? make("small", {}, hint) : null);
}

const memory = (title, hint, { total, free }) => meter(title, hint, total - free, total, `${gigabytes(total - free)} of ${gigabytes(total)} used, ${gigabytes(free)} free`);

async function lookAtMachine() {
  const now = await ask("see_machine");
  if (!now) return;
  find(".ovi-meters").replaceChildren(
    ...now.cards.map((card) => memory(card.name, `compute capability ${card.capability}`, card)),
    ...(now.cards.length ? [] : [make("p", { class: "ovi-soft" }, now.notes[0] || "There is no card that can be used.")]),
    memory("Host memory", `${now.cores} cores`, now.ram),
    meter("Disk of the weights", now.disk.kind, now.disk.total - now.disk.free, now.disk.total, `${size(now.disk.free)} of ${size(now.disk.total)} free`),
    ...now.notes.slice(now.cards.length ? 0 : 1).map((note) => make("p", { class: "ovi-soft" }, note)));
}

// --- The plan -----------------------------------------------------------------------------------------------

const chooser = find("[data-at=variant]");
async function showPlan() {
  const plan = await ask("see_plan", { variant: chooser.value || "nano" });
  if (!plan) return;
  if (!chooser.options.length) chooser.replaceChildren(...plan.models.map((model) => make("option", { value: model.name }, model.title)));
  const box = find(".ovi-planned");
  if (plan.refusal) return box.replaceChildren(make("p", { class: "ovi-bad" }, plan.refusal));
  const facts = [["Takes about", minutes(Math.max(1, plan.seconds))]];
  if (plan.gpu.budget) facts.push(["On the card at most", `${gigabytes(plan.gpu.peak)} of ${gigabytes(plan.gpu.budget)} usable`]);
  facts.push(["In host memory at most", `${gigabytes(plan.host.peak)} of ${gigabytes(plan.host.budget)}`]);
  box.replaceChildren(
    make("p", { class: "ovi-soft" }, plan.what),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    make("details", {}, make("summary", {}, "Where each part is"),
      make("dl", {}, ...plan.components.flatMap((part) => [make("dt", {}, part.name.replaceAll("_", " ")), make("dd", {}, part.how)]))),
    make("details", {}, make("summary", {}, "Stage by stage"), make("div", { class: "ovi-scroll" },
      grid(["Stage", "Card", "Host", "Seconds"], plan.stages.map((stage) => [stage.name, gigabytes(stage.peak_gpu_bytes), gigabytes(stage.peak_host_bytes), stage.seconds.toFixed(1)])))),
    make("details", {}, make("summary", {}, "Why"), make("ul", { class: "ovi-dots" }, ...plan.reasons.map((reason) => make("li", {}, reason)))));
  return undefined;
}
chooser.addEventListener("change", showPlan);

function grid(head, rows) {
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((text) => make("td", {}, text))))));
}

// --- Planned and measured -----------------------------------------------------------------------------------

let runs = [];
let measure = "seconds";
const shownAs = { seconds: minutes, gpu: gigabytes, host: gigabytes };

async function showHistory() {
  const answer = await ask("see_history");
  if (!answer) return;
  runs = answer.runs;
  drawHistory();
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawHistory() {
  const box = find(".ovi-chart");
  const told = runs.filter((run) => run[measure][0] !== null || run[measure][1] !== null);
  find(".ovi-history details").hidden = !runs.length;
  find(".ovi-history table").replaceWith(grid(["Clip", "Model", "Time planned", "measured", "Card planned", "measured", "Host planned", "measured"],
    [...runs].reverse().map((run) => [run.title, run.model, ...["seconds", "gpu", "host"].flatMap((name) => run[name].map((value) => (value === null || (name === "gpu" && !value) ? "–" : shownAs[name](value))))])));
  if (!told.some((run) => run[measure].some((value) => value))) {
    const words = runs.length ? "Nothing of this kind was measured here." : "After the first clips it stands here how near the plans came.";
    return box.replaceChildren(make("p", { class: "ovi-soft" }, words));
  }
  const [wide, tall, foot] = [Math.max(320, box.clientWidth), 168, 4];
  const most = Math.max(...told.flatMap((run) => run[measure].map((value) => value || 0)));
  const step = (wide - 8) / Math.max(told.length, 8);
  const bar = (value, x, kind) => svg("rect", { x, y: tall - foot - ((tall - 22) * (value || 0)) / most, width: step * 0.36, height: ((tall - 22) * (value || 0)) / most, rx: 2, class: kind });
  const drawing = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `${told.length} runs: planned and measured, the newest last` },
    ...[0, 0.5, 1].map((share) => svg("line", { x1: 0, x2: wide, y1: tall - foot - (tall - 22) * share, y2: tall - foot - (tall - 22) * share })),
    ...told.map((run, place) => {
      const [planned, measured] = run[measure];
      const words = `${run.title}: planned ${planned === null ? "–" : shownAs[measure](planned)}, measured ${measured === null ? "–" : shownAs[measure](measured)}`;
      return svg("g", {}, svg("title", {}, words), bar(planned, 4 + place * step + step * 0.1, "ovi-planned-bar"), bar(measured, 4 + place * step + step * 0.5, "ovi-measured-bar"));
    }));
  return box.replaceChildren(
    make("p", { class: "ovi-legend" }, make("span", { class: "ovi-planned-bar" }), "planned", make("span", { class: "ovi-measured-bar" }), "measured", make("small", {}, `the highest line is ${shownAs[measure](most)}`)),
    drawing);
}
element.querySelectorAll("[data-measure]").forEach((button) => button.addEventListener("click", () => {
  measure = button.dataset.measure;
  element.querySelectorAll("[data-measure]").forEach((each) => each.setAttribute("aria-pressed", each === button));
  drawHistory();
}));

// --- The weights --------------------------------------------------------------------------------------------

const states = { present: "Here", partial: "In part", missing: "Not here", "built in": "Built in" };
const amount = (item) => {
  const total = item.total ? `${item.exact ? "" : "about "}${size(item.total)}` : "";
  return item.state === "partial" || (item.present && item.state !== "present") ? `${size(item.present)} of ${total}` : total;
};

async function showWeights() {
  const answer = await ask("see_weights");
  if (!answer) return;
  weights = answer;
  find(".ovi-weights code").textContent = weights.folder;
  find(".ovi-models").replaceChildren(...weights.models.map(drawModel));
  find(".ovi-parts ul").replaceChildren(...weights.parts.map(drawPart), ...weights.adapters.map(drawAdapter));
  showErrand(weights.errand);
}

function buttons(item, lacks, intact, look) {
  const busy = weights.errand.busy;
  const act = (name, words, attributes = {}) => make("button", { type: "button", disabled: busy, ...attributes, onclick: () => change(name, item) }, words);
  return make("div", { class: "ovi-buttons" },
    lacks ? act("download", item.present ? "Resume" : "Download", { class: look, "aria-label": `Download ${item.name}` }) : null,
    intact ? act("verify", "Verify", { "aria-label": `Verify ${item.name}` }) : null,
    item.removable ? act("remove", "Remove", { class: "ovi-risky", "aria-label": `Remove ${item.name}` }) : null);
}

function licences(list) {
  return make("p", { class: "ovi-licence" }, "Licence: ", ...list.flatMap((licence, place) => [place ? ", " : "", link(licence.link, licence.name)]));
}

function drawModel(model) {
  const builtIn = model.state === "built in";
  return make("article", {},
    make("header", {}, make("h3", {}, model.title), chip(model.state, states[model.state])),
    make("p", { class: "ovi-soft" }, model.description),
    make("p", {}, builtIn ? "Inside the package, needs no download." : amount(model), model.trained ? "" : " Untrained: expect noise."),
    model.lacks.length && model.state === "partial" ? make("p", { class: "ovi-soft" }, `Lacks ${model.lacks.join(", ")}`) : null,
    model.licenses.length ? licences(model.licenses) : null,
    builtIn ? null : buttons(model, model.lacks.length, model.whole, "ovi-main"));
}

function drawPart(part) {
  return make("li", {},
    make("div", {}, make("b", {}, part.name), make("small", {}, [part.kind, part.role].filter(Boolean).join(", "))),
    make("div", {}, chip(part.state, states[part.state]), make("small", {}, amount(part))),
    make("div", {}, licences([part.license]),
      part.gated ? make("p", { class: "ovi-soft" }, "Its owner asks you to accept the licence first: open ", link(part.page, "its page"), ", accept it there, sign in here with ", make("code", {}, "hf auth login"), ", then download.") : null,
      part.note ? make("p", { class: "ovi-soft" }, part.note) : null),
    buttons(part, part.state !== "present" && !part.imported, part.state === "present"));
}

function drawAdapter(adapter) {
  return make("li", {},
    make("div", {}, make("b", {}, adapter.name), make("small", {}, "adapter")),
    make("div", {}, chip("present", states.present), make("small", {}, size(adapter.total))),
    make("div", {}, make("p", { class: "ovi-soft" }, adapter.title)),
    buttons(adapter, false, true));
}

const model = (name) => weights.models.find((each) => each.name === name);
async function change(act, item) {
  if (act === "remove" && !(await sure(item))) return;
  const answer = await ask("change_weights", { act, name: item.name });
  if (!answer) return;
  await showWeights();
  if (act === "remove") lookAtMachine();
}

function sure(item) {
  find("#ovi-ask-title").textContent = `Remove ${item.name}?`;
  dialog.querySelector("p").textContent = `${size(item.removable)} are set free. ${model(item.name) ? "What other models use too stays. " : ""}Of linked files only the links go. It can be downloaded again.`;
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
dialog.addEventListener("cancel", () => { dialog.returnValue = "no"; });

function showErrand(now) {
  const over = errand && errand.busy && !now.busy;
  errand = now;
  errandBox.hidden = !now.errand;
  if (!now.errand) return over;
  const doing = now.errand === "download" ? "Download of" : "Check of";
  const ends = { done: now.errand === "download" ? "is done: all of it is here" : "is done: all of it is intact", failed: "stopped", cancelled: "was cancelled; what has arrived stays" };
  errandBox.querySelector("b").textContent = `${doing} ${now.names.join(", ")}${ends[now.stage] ? ` ${ends[now.stage]}` : ""}`;
  errandBox.dataset.state = now.stage;
  find("[data-do=cancel]").hidden = !now.busy;
  const share = now.stage === "done" ? 100 : now.bytes_total ? (100 * now.bytes_done) / now.bytes_total : 0;
  const bar = errandBox.querySelector(".ovi-progress");
  bar.setAttribute("aria-valuenow", Math.round(share));
  bar.firstElementChild.style.width = `${share}%`;
  const checking = now.bytes_total && now.bytes_done >= now.bytes_total;
  errandBox.querySelector("p").textContent = {
    asking: "Asking what there is …",
    waiting: "Another program is fetching the same: waiting for it.",
    running: [now.bytes_total ? `${size(now.bytes_done)} of ${size(now.bytes_total)}` : "", now.bytes_per_second ? `${size(now.bytes_per_second)}/s` : "",
      now.seconds_left && !checking ? `${minutes(now.seconds_left)} left` : "", checking ? "comparing checksums" : ""].filter(Boolean).join(" · "),
  }[now.stage] || "";
  errandBox.querySelector(".ovi-bad").textContent = now.fault;
  errandBox.querySelector("details").hidden = !now.news.length;
  errandBox.querySelector("ul").replaceChildren(...now.news.map((line) => make("li", {}, line)));
  return over;
}

async function followErrand() {
  const now = await ask("see_errand");
  if (now && showErrand(now)) {
    await showWeights();
    lookAtMachine();
  }
}

// --- The doctor and the settings ----------------------------------------------------------------------------

const isCommand = (remedy) => /^(pip|ovi-studio|hf) /.test(remedy);
const judged = { ok: "Fine", note: "Note", missing: "Missing", problem: "Problem" };
async function showDoctor() {
  const answer = await ask("see_doctor");
  if (!answer) return;
  report = answer.text;
  find("[data-do=copy]").disabled = false;
  const order = ["problem", "missing", "note", "ok"];
  const checks = [...answer.checks].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  find(".ovi-doctor ul").replaceChildren(...checks.map((check) => make("li", {},
    chip(check.state, judged[check.state]),
    make("div", {}, make("b", {}, check.name), " ", make("span", {}, check.text), check.remedy ? make(isCommand(check.remedy) ? "code" : "small", {}, check.remedy) : null))));
}

async function showSettings(answer) {
  const now = answer || (await ask("see_settings"));
  if (!now) return;
  find(".ovi-settings input").value = now.weights;
  find("[data-do=usual]").hidden = now.usual_weights;
  find(".ovi-later").textContent = now.weights === now.weights_now ? "Files stay where they are: take them along yourself when you change it."
    : `From the next start on. Until then the weights are those in ${now.weights_now}; move its content along yourself.`;
  find(".ovi-settings dl").replaceChildren(...now.folders.flatMap(({ what, path }) => [make("dt", {}, what), make("dd", {}, make("code", {}, path))]),
    make("dt", {}, "To move all of it"), make("dd", {}, "start with the variable ", make("code", {}, now.home_variable)));
}

find(".ovi-settings form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await ask("change_folder", { folder: find(".ovi-settings input").value });
  if (answer) showSettings(answer);
});

function markLook() {
  element.querySelectorAll("[data-look]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.look === look()));
}
element.querySelectorAll("[data-look]").forEach((button) => button.addEventListener("click", () => { wear(button.dataset.look); markLook(); }));
markLook();

const acts = {
  cancel: async () => { const now = await ask("change_weights", { act: "cancel" }); if (now) showErrand(now); },
  doctor: showDoctor,
  async copy(button) {
    const words = button.textContent;
    try {
      await navigator.clipboard.writeText(report);
      button.textContent = "Copied";
    } catch { // a page that is not served safely has no clipboard: then the text is shown
      const area = make("textarea", { rows: "12", readonly: true, class: "ovi-report", "aria-label": "The report as text" });
      area.value = report;
      find(".ovi-report")?.remove();
      find(".ovi-doctor").append(area);
      area.select();
    }
    setTimeout(() => { button.textContent = words; }, 2000);
  },
  usual: async () => { const answer = await ask("change_folder", { folder: "" }); if (answer) showSettings(answer); },
};
element.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", () => acts[button.dataset.do](button)));

// --- While somebody looks -----------------------------------------------------------------------------------

const isSeen = () => !document.hidden && element.offsetParent !== null;
async function lookAtAll() {
  await Promise.all([lookAtMachine(), showWeights(), showPlan(), showHistory(), showSettings()]);
  showDoctor();
}
new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) arrive(); }).observe(element);
let arrived = 0;
function arrive() {
  if (Date.now() - arrived < 3000) return;
  arrived = Date.now();
  lookAtAll();
}
let beats = 0;
setInterval(() => {
  if (!isSeen() || !arrived) return;
  beats++;
  if (errand && errand.busy) followErrand();
  if (beats % 4 === 0) lookAtMachine();
}, 1000);
