// A table on its way to clips: dropped, mended in place, run, watched. What is typed stays in the browser until it runs.
const { make, minutes, listen } = window.studio;
const find = (selector) => element.querySelector(selector);
const [begin, sheet, runView] = [find(".ovi-begin"), find(".ovi-mending"), find(".ovi-batch-run")];
const [head, body, trouble] = [find("thead tr"), find("tbody"), find(".ovi-trouble")];
const chooser = find("input[type=file]");
const [KEPT, SHOWN] = ["ovi-studio-table", "ovi-studio-batch"];
let info = null; // what `open_batches` told
let table = null; // {title, variant, takes, header: […], rows: [{cells, faults, clips, asked, line}]}
let away = null; // the table that was put away last
let header = []; // faults of the header
let batch = null; // what `see_batch` told

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
  if (problem) trouble.scrollIntoView({ block: "nearest" });
}

function show(view) {
  [begin, sheet, runView].forEach((each) => { each.hidden = each !== view; });
}

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// --- Files --------------------------------------------------------------------------------------------------

const encoded = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function take(files) {
  if (!info) return; // the page has only just come
  const foreign = files.find((file) => /\.(xlsx?|xlsm|ods|numbers)$/i.test(file.name));
  if (foreign) return say(`${foreign.name} is a spreadsheet program's own file: save it there as CSV, and drop that.`);
  const tables = files.filter((file) => /\.(csv|tsv|txt)$/i.test(file.name));
  const pictures = files.filter((file) => !tables.includes(file));
  let problem = tables.length > 1 ? "Those are several tables: drop one at a time." : "";
  for (const file of pictures) {
    if (file.size > info.most_picture_bytes) problem = `${file.name} is larger than ${info.most_picture_bytes >> 20} MiB.`;
    else problem = await sent("keep_picture", file, (answer) => { info.pictures = answer.pictures; }) || problem;
  }
  if (tables.length === 1) {
    if (tables[0].size > info.most_bytes) problem = `${tables[0].name} is larger than ${info.most_bytes >> 20} MiB. Split it.`;
    else problem = await sent("read_table", tables[0], open) || problem;
  } else if (table) await checkAll();
  say(problem);
}

// What went wrong, or "".
async function sent(name, file, use) {
  let data;
  try {
    data = await encoded(file);
  } catch {
    return `${file.name} cannot be read.`;
  }
  const answer = await ask(name, { name: file.name, data });
  if (!answer) return trouble.textContent;
  await use(answer);
  return "";
}

chooser.addEventListener("change", async () => {
  await take([...chooser.files]);
  chooser.value = "";
});
element.addEventListener("dragover", (event) => {
  if (!runView.hidden || !event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  element.firstElementChild.classList.add("ovi-over");
});
element.addEventListener("dragleave", (event) => {
  if (!element.contains(event.relatedTarget)) element.firstElementChild.classList.remove("ovi-over");
});
element.addEventListener("drop", (event) => {
  element.firstElementChild.classList.remove("ovi-over");
  if (!runView.hidden || !event.dataTransfer.files.length) return;
  event.preventDefault();
  take([...event.dataTransfer.files]);
});
find(".ovi-pasting").addEventListener("submit", (event) => {
  event.preventDefault();
  const area = find(".ovi-pasting textarea");
  take([new File([area.value], "table.csv")]).then(() => { if (table) area.value = ""; });
});

// --- The table ----------------------------------------------------------------------------------------------

const row = (cells) => ({ cells, faults: [], clips: 0, asked: 0, line: null });

async function open({ title, header, rows, variant, takes }) {
  table = { title, variant: variant || info.models[0].name, takes: takes || 1, header, rows: rows.map(row) };
  draw();
  show(sheet);
  await checkAll();
}

function keep() {
  const { title, variant, takes, header } = table || {};
  studio.remember(KEPT, table && { title, variant, takes, header, rows: table.rows.map((each) => each.cells) });
}

function asked(rows) {
  const { title, variant, takes, header } = table;
  return { title, variant, takes, header, rows: rows.map((each) => each.cells) };
}

function draw() {
  find("[data-at=title]").value = table.title;
  find("[data-at=variant]").value = table.variant;
  find("[data-at=takes]").value = table.takes;
  head.replaceChildren(
    make("th", { scope: "col", class: "ovi-number" }, make("span", { class: "ovi-hidden" }, "Row")),
    ...table.header.map((label, place) => make("th", { scope: "col", class: kind(place), "data-place": place },
      make("div", {},
        make("input", { type: "text", value: label, "aria-label": `Name of column ${place + 1}`, spellcheck: "false", oninput: (event) => relabel(place, event.target.value) }),
        make("button", { type: "button", title: "Remove this column", "aria-label": `Remove column ${label || place + 1}`, onclick: () => removeColumn(place) }, "✕")),
      make("p", { class: "ovi-fault" }))),
    make("th", { class: "ovi-row-end" }, make("span", { class: "ovi-hidden" }, "Change the row")));
  body.replaceChildren(...table.rows.map(drawRow));
  const free = info.columns.filter((name) => !table.header.some((label) => key(label) === name));
  find("[data-at=column]").replaceChildren(make("option", { value: "" }, "choose…"), ...free.map((name) => make("option", { value: name }, name)));
}

const key = (label) => label.trim().toLowerCase().replace(/[\s_-]+/g, "_");
const kind = (place) => {
  const name = key(table.header[place]);
  if (/^(text_)?prompt$/.test(name)) return "ovi-c-prompt";
  return /prompt|adapters/.test(name) ? "ovi-c-text" : /name|tags|image|model|variant|size/.test(name) ? "ovi-c-word" : "ovi-c-short";
};

function drawRow(each) {
  const number = () => table.rows.indexOf(each);
  each.line = make("tr", {},
    make("th", { scope: "row", class: "ovi-number" }, make("span", { class: "ovi-lamp", role: "img" }), make("span", { class: "ovi-count" })),
    ...each.cells.map((text, place) => make("td", { class: kind(place), "data-label": table.header[place], "data-place": place },
      cell(each, place, text), make("p", { class: "ovi-fault" }))),
    make("td", { class: "ovi-row-end" },
      make("button", { type: "button", title: "The same once more", "aria-label": "Repeat the row", onclick: () => insert(number() + 1, each.cells) }, "+"),
      make("button", { type: "button", title: "Remove this row", "aria-label": "Remove the row", onclick: () => removeRow(number()) }, "✕")));
  showRow(each, number());
  return each.line;
}

function cell(each, place, text) {
  const area = make("textarea", { rows: "1", spellcheck: "false", "aria-label": `${table.header[place]}` });
  area.value = text;
  area.addEventListener("input", () => { each.cells[place] = area.value; keep(); checkSoon(each); });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault(); // Enter goes down as in a spreadsheet; Shift-Enter breaks the line
    each.line.nextElementSibling?.querySelector(`[data-place="${place}"] textarea`)?.focus();
  });
  return area;
}

function showRow(each, number) {
  const empty = each.cells.every((text) => !text.trim());
  const state = empty ? "empty" : each.faults.length ? "bad" : each.clips ? "good" : "open";
  const words = { empty: "Empty: it is left out", bad: "To be mended", good: "Good", open: "Not checked yet" }[state];
  each.line.dataset.state = state;
  const [mark, at] = each.line.firstElementChild.children;
  mark.title = words;
  mark.setAttribute("aria-label", words);
  at.textContent = number + 2;
  const whole = each.faults.filter((fault) => fault.column < 0);
  each.line.querySelectorAll("td[data-place]").forEach((td, place) => {
    const own = each.faults.filter((fault) => fault.column === place).concat(place === 0 ? whole : []);
    mend(td, own);
    td.firstElementChild.setAttribute("aria-label", `${table.header[place] || "No column"}, row ${number + 2}`);
  });
}

function mend(box, faults) {
  const [field, place] = [box.querySelector("textarea, input"), box.querySelector(".ovi-fault")];
  box.classList.toggle("ovi-wrong", faults.length > 0);
  field.setAttribute("aria-invalid", faults.length > 0);
  place.replaceChildren(...faults.map((fault) => make("span", {}, make("b", {}, fault.problem), ` ${fault.remedy}`)));
}

// --- Checking -----------------------------------------------------------------------------------------------

let whole = 0;
async function checkAll() {
  keep();
  const turn = ++whole;
  const rows = [...table.rows];
  const before = rows.map((each) => each.asked);
  const answer = await ask("check_table", asked(rows));
  if (!answer || turn !== whole || !table) return;
  showHeader(answer, true);
  rows.forEach((each, place) => { if (each.asked === before[place]) Object.assign(each, answer.rows[place]); });
  table.rows.forEach(showRow);
  summary();
}

// A row alone, as soon as nobody types any more.
function checkSoon(each) {
  const turn = ++each.asked;
  setTimeout(async () => {
    if (turn !== each.asked) return;
    const answer = await ask("check_table", asked([each]));
    if (!answer || turn !== each.asked || !table || !table.rows.includes(each)) return;
    showHeader(answer, false);
    Object.assign(each, answer.rows[0]);
    showRow(each, table.rows.indexOf(each));
    summary();
  }, 250);
}

function showHeader(answer, all) {
  header = answer.head;
  head.querySelectorAll("th[data-place]").forEach((th, place) => mend(th, header.filter((fault) => fault.column === place)));
  const lines = header.filter((fault) => fault.column < 0).map((fault) => make("li", { class: "ovi-bad" }, `${fault.problem} ${fault.remedy}`));
  if (answer.ignored.length) lines.push(make("li", {}, `Columns that say nothing here: ${answer.ignored.join(", ")}`));
  lines.push(...answer.notes.map((note) => make("li", {}, note)));
  if (all || header.length) find(".ovi-remarks").replaceChildren(...lines);
  const pictures = find(".ovi-pictures");
  pictures.hidden = !info.pictures.length;
  pictures.firstElementChild.textContent = `${count(info.pictures.length, "picture")} here: ${info.pictures.slice(0, 6).join(", ")}${info.pictures.length > 6 ? " …" : ""}`;
}

function summary() {
  const bad = table.rows.filter((each) => each.line.dataset.state === "bad").length;
  const good = table.rows.filter((each) => each.line.dataset.state === "good");
  const clips = good.reduce((sum, each) => sum + each.clips, 0);
  const wrong = bad + header.length;
  find(".ovi-foot b").textContent = wrong ? `${count(bad || header.length, bad ? "row" : "column")} to mend` : clips ? "All good" : "No rows yet";
  find(".ovi-foot span").textContent = clips ? `${count(good.length, "good row")}, ${count(clips, "clip")}` : wrong ? "" : "Write a prompt into one, or add another.";
  find("[data-do=next]").hidden = !wrong;
  const some = find("[data-do=good]");
  some.hidden = !(bad && clips && !header.length);
  some.textContent = `Run the ${good.length === 1 ? "good one" : `${good.length} good ones`}`;
  const run = find("[data-do=run]");
  run.textContent = clips ? `Make ${count(clips, "clip")}` : "Make the clips";
  run.disabled = Boolean(wrong) || !clips;
}

// --- Changing the table's shape -----------------------------------------------------------------------------

function insert(at, cells) {
  if (table.rows.length >= info.most_rows) return say(`A table here has up to ${info.most_rows} rows.`);
  const fresh = row(cells ? [...cells] : table.header.map(() => ""));
  table.rows.splice(at, 0, fresh);
  const line = drawRow(fresh);
  body.insertBefore(line, body.children[at] || null);
  table.rows.forEach(showRow);
  line.querySelector("textarea").focus();
  keep();
  if (cells) checkSoon(fresh);
  summary();
}

function removeRow(at) {
  table.rows.splice(at, 1)[0].line.remove();
  table.rows.forEach(showRow);
  (body.children[Math.min(at, table.rows.length - 1)] || find("[data-do=row]").parentElement).querySelector("textarea, button")?.focus();
  keep();
  summary();
}

let relabelled = 0;
function relabel(place, label) {
  table.header[place] = label;
  table.rows.forEach((each) => { each.line.querySelector(`[data-place="${place}"]`).dataset.label = label; });
  clearTimeout(relabelled);
  relabelled = setTimeout(checkAll, 300);
}

function reshape(change) {
  change(table.header);
  table.rows.forEach((each) => { change(each.cells); each.asked++; });
  draw();
  checkAll();
}

const removeColumn = (place) => reshape((cells) => cells.splice(place, 1));
find("[data-at=column]").addEventListener("change", (event) => {
  const name = event.target.value;
  if (!name) return;
  reshape((cells) => cells.push(cells === table.header ? name : ""));
  head.querySelector(`[data-place="${table.header.length - 1}"]`).scrollIntoView({ inline: "end", block: "nearest" });
});
for (const name of ["title", "variant", "takes"]) {
  find(`[data-at=${name}]`).addEventListener("change", (event) => {
    table[name] = name === "takes" ? Math.min(Math.max(1, Math.round(event.target.value) || 1), info.most_takes) : event.target.value;
    event.target.value = table[name];
    if (name === "title") keep();
    else checkAll();
  });
}

// --- The batch ----------------------------------------------------------------------------------------------

const words = { queued: "Waits", running: "Being made", paused: "Paused", done: "Done", failed: "Failed", cancelled: "Stopped" };
let lines = new Map(); // by job: what is shown of it, and its place in the page

function showBatch(answer) {
  if (!batch || batch.id !== answer.id) {
    lines = new Map();
    find(".ovi-jobs").replaceChildren();
  }
  batch = answer;
  const { done = 0, failed = 0, cancelled = 0, queued = 0, running = 0, paused = 0 } = batch.counts;
  const [total, left] = [batch.jobs.length, queued + running + paused];
  find(".ovi-batch-run h2").textContent = batch.title;
  const share = total ? Math.round((100 * (done + failed)) / total) : 0; // stopped ones are still to be made
  const bar = runView.querySelector(".ovi-progress");
  bar.setAttribute("aria-valuenow", share);
  bar.firstElementChild.style.width = `${share}%`;
  bar.classList.toggle("ovi-ended", !left);
  const mean = batch.seconds.length ? batch.seconds.reduce((a, b) => a + b, 0) / batch.seconds.length : null;
  find(".ovi-batch-run p").textContent = [
    `${done} of ${total} done`,
    failed ? `${failed} failed` : "",
    cancelled ? `${cancelled} stopped` : "",
    left && mean !== null ? `about ${minutes(mean * left)} left` : left ? `${left} to come` : "",
  ].filter(Boolean).join(" · ");
  find("[data-do=stop]").hidden = !left;
  offer("retry", failed, "Try the failed one again", `Try the ${failed} failed again`);
  offer("resume", left ? 0 : cancelled, "Make the stopped one", `Make the ${cancelled} stopped`);
  find("[data-do=zip]").disabled = find("[data-do=results]").disabled = !done;
  find("[data-do=results]").disabled = !total;
  for (const job of batch.jobs) showJob(job);
}

function offer(name, number, one, many) {
  const button = find(`[data-do=${name}]`);
  button.hidden = !number;
  button.textContent = number === 1 ? one : many;
}

function showJob(job) {
  const shown = JSON.stringify({ ...job, progress: 0 });
  let line = lines.get(job.id);
  if (!line) {
    line = { box: make("li", {}), shown: "" };
    lines.set(job.id, line);
    find(".ovi-jobs").append(line.box);
  }
  if (line.shown !== shown) {
    line.shown = shown;
    const place = job.take > 1 || batch.jobs.some((other) => other.row === job.row && other.take > 1) ? `${job.row} · take ${job.take}` : job.row;
    const link = job.status === "done" ? { href: `studio/clip/${job.id}.mp4`, target: "_blank", rel: "noopener" } : null;
    line.box.dataset.state = job.status;
    line.box.replaceChildren(
      link && job.has_picture ? make("a", { ...link, tabindex: "-1", "aria-hidden": "true" }, make("img", { src: `studio/thumb/${job.id}.jpg`, alt: "", loading: "lazy" }))
        : make("span", { class: "ovi-thumb", "aria-hidden": "true" }, job.has_picture ? "" : "♪"),
      make("div", {}, make("small", {}, `Row ${place}`), make("b", {}, job.title), job.reason ? make("p", { class: "ovi-bad" }, job.reason) : null,
        job.status === "running" ? make("div", { class: "ovi-progress" }, make("span", {})) : null),
      make("span", { class: "ovi-chip" }, words[job.status]),
      make("span", { class: "ovi-took" }, job.status === "done" && job.seconds !== null ? minutes(job.seconds) : ""),
      link ? make("a", { ...link, class: "ovi-open", "aria-label": `Open the clip of row ${place}` }, "Open") : make("span", { class: "ovi-open" }));
  }
  advance(job.id, job.progress);
}

function advance(id, progress) {
  const bar = lines.get(id)?.box.querySelector(".ovi-progress span");
  if (bar) bar.style.width = `${Math.round(100 * progress)}%`;
}

const isSeen = () => !document.hidden && element.offsetParent !== null && !runView.hidden;
let looking = false;
async function look() {
  if (!batch || looking) return;
  looking = true;
  const id = batch.id;
  const answer = await ask("see_batch", { batch: id });
  looking = false;
  if (answer && batch && batch.id === id) showBatch(answer);
}

// The news of the runs say when to look again; where they do not come, it is looked every few seconds.
let seen = "";
listen((news) => {
  for (const run of news.running || []) advance(run.id, run.progress);
  if (!batch || !isSeen()) return;
  const now = [...(news.running || []), ...(news.ended || []), ...(news.waiting || [])].filter((job) => lines.has(job.id)).map((job) => `${job.id}${job.status || ""}`).join();
  if (now !== seen) look();
  seen = now;
});
setInterval(() => {
  const { queued = 0, running = 0, paused = 0 } = batch ? batch.counts : {};
  if (isSeen() && queued + running + paused) look();
}, 3000);

// --- Buttons ------------------------------------------------------------------------------------------------

function showBegin() {
  const list = find(".ovi-earlier ul");
  find(".ovi-earlier").hidden = !info.batches.length;
  find("[data-do=reopen]").hidden = !away;
  list.replaceChildren(...info.batches.map((each) => {
    const { done = 0, failed = 0, queued = 0, running = 0, paused = 0 } = each.counts;
    const left = queued + running + paused;
    const total = Object.values(each.counts).reduce((a, b) => a + b, 0);
    return make("li", {}, make("button", { type: "button", onclick: () => openBatch(each.id) },
      make("b", {}, each.title),
      make("small", {}, `${done} of ${total} done${failed ? `, ${failed} failed` : ""}`),
      make("span", { class: "ovi-chip", "data-state": left ? "running" : failed ? "failed" : "done" }, left ? "Under way" : failed ? "With failures" : "Over"),
      make("time", {}, new Date(each.created * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }))));
  }));
  show(begin);
}

async function openBatch(id) {
  const answer = await ask("see_batch", { batch: id });
  if (!answer) return;
  showBatch(answer);
  stay(runView);
}

// A page that is opened anew in the same tab shows the batch again, also when it is over.
function stay(view) {
  show(view);
  studio.remember(SHOWN, view === runView ? batch.id : null, "sessionStorage");
}

async function start(only_good) {
  const answer = await ask("start_batch", { ...asked(table.rows), only_good });
  if (!answer) return;
  table = null;
  keep();
  showBatch(answer);
  stay(runView);
  runView.scrollIntoView({ block: "nearest" });
}

const acts = {
  choose: () => chooser.click(),
  paste() {
    const form = find(".ovi-pasting");
    form.hidden = !form.hidden;
    if (!form.hidden) form.querySelector("textarea").focus();
  },
  fresh: () => open({ title: "New batch", header: ["text_prompt", "seed"], rows: [["", ""], ["", ""], ["", ""]] }),
  example: () => take([new File([info.example], "example.csv")]),
  async save() {
    const answer = await ask("table_file", asked(table.rows));
    if (answer) download(answer.name, answer.text);
  },
  close() {
    away = table;
    table = null;
    keep();
    refresh();
  },
  reopen: () => open({ ...away, rows: away.rows.map((each) => each.cells) }),
  async forget() {
    const answer = await ask("forget_pictures");
    if (!answer) return;
    info.pictures = answer.pictures;
    checkAll();
  },
  row: () => insert(table.rows.length),
  next() {
    const wrong = [...element.querySelectorAll(".ovi-wrong")];
    const now = wrong.findIndex((box) => box.contains(document.activeElement));
    wrong[(now + 1) % wrong.length]?.querySelector("textarea, input").focus();
  },
  run: () => start(false),
  good: () => start(true),
  stop: () => change("stop_batch"),
  retry: () => change("retry_batch", ["failed"]),
  resume: () => change("retry_batch", ["cancelled"]),
  async results() {
    const answer = await ask("batch_results", { batch: batch.id });
    if (answer) download(answer.name, answer.text);
  },
  async zip(button) {
    const text = button.textContent;
    button.textContent = "Packing …";
    const answer = await ask("batch_zip", { batch: batch.id });
    button.textContent = text;
    if (answer) make("a", { href: answer.url, download: "" }).click();
  },
  back() {
    batch = null;
    stay(begin);
    refresh();
  },
};

async function change(name, statuses = []) {
  const answer = await ask(name, { batch: batch.id, statuses });
  if (answer) showBatch(answer);
  else look();
}

element.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", async () => {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  await acts[button.dataset.do](button);
  button.removeAttribute("aria-busy");
}));

// --- Opening ------------------------------------------------------------------------------------------------

async function refresh() {
  const answer = await ask("open_batches");
  if (!answer) return false;
  info = answer;
  find("[data-at=variant]").replaceChildren(...info.models.map((model) => make("option", { value: model.name }, model.title)));
  find("[data-at=takes]").max = info.most_takes;
  showBegin();
  return true;
}

// What was looked at or is under way comes first, then the table that was not run yet.
async function arrive() {
  if (!(await refresh())) return;
  const shown = info.batches.find(({ id }) => id === studio.recall(SHOWN, "sessionStorage"))
    || info.batches.find(({ counts }) => counts.queued || counts.running || counts.paused);
  const kept = studio.recall(KEPT);
  if (shown) await openBatch(shown.id);
  else if (kept && kept.rows && kept.rows.length) await open(kept);
}

arrive();
