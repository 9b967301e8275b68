// What runs, waits and is over. The news come by themselves; rows are kept and moved, so that hundreds stay smooth.
const { make, minutes, listen } = window.studio;
const find = (selector) => element.querySelector(selector);
const [now, rows, over, blank] = [find(".ovi-now"), find(".ovi-lineup"), find(".ovi-past"), find(".ovi-blank")];
const [trouble, undo, said] = [find(".ovi-trouble"), find(".ovi-undo"), find("[data-said]")];
const SHOWN = 6; // of those that ended well or were cancelled
const CLEARED = "ovi-studio-queue-cleared"; // in the browser: what ended before is not shown any more
const stages = {
  "": "Starting", load: "Loading the model", "encode text": "Reading the prompt",
  "draw frame": "Drawing the first frame", "first frame": "Reading the first frame",
  denoise: "Denoising", decode: "Decoding", mux: "Writing the file",
};
let news = { running: [], waiting: [], ended: [], failed: [], left_now: 0, others: 0, owner: false, trouble: "" };
let order = null; // ids as somebody has just put them, until the news agree
let problem = "";
let thrown = "";

async function ask(what, asked = {}) {
  const answer = (await server.change_queue({ what, ...asked })) || { problem: "The server does not answer. Is it still running?" };
  problem = answer.problem || "";
  if (problem) order = null;
  draw();
  return !problem;
}

function tell(name, id) {
  props.value = id;
  if (name === "edit") trigger("edit");
  if (name === "show") trigger("show");
}

// --- Rows that are kept -------------------------------------------------------------------------------------

// Brings a list to these items: each row is made once, told of changes, and moved as little as can be.
function keep(list, items, create) {
  const known = new Map([...list.children].map((row) => [row.dataset.id, row]));
  let place = list.firstElementChild;
  items.forEach((item, i) => {
    let row = known.get(item.id);
    if (row) known.delete(item.id);
    else row = create(item);
    row.dataset.id = item.id;
    row.update(item, i);
    if (row === place) place = place.nextElementSibling;
    else list.insertBefore(row, place);
  });
  known.forEach((row) => row.remove());
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function thumb() {
  const box = make("span", { class: "ovi-still", "aria-hidden": "true" });
  let shown = null;
  box.show = (url, sign) => {
    if (shown === url + sign) return;
    shown = url + sign;
    const picture = url ? make("img", { src: url, alt: "", loading: "lazy", decoding: "async" }) : null;
    picture?.addEventListener("error", () => picture.replaceWith(make("span", {}, sign)));
    const old = box.querySelector("img");
    if (picture && old) picture.addEventListener("load", () => box.replaceChildren(picture)); // without a flash
    else box.replaceChildren(picture || make("span", {}, sign));
    if (picture && old) picture.loading = "eager";
  };
  return box;
}

function frameOf(job) {
  const url = job.frame && job.frame !== "drawn" ? `studio/frame/${job.id}.jpg?${job.frame}` : "";
  return [url, job.frame === "drawn" ? "✎" : job.facts.includes("sound only") ? "♪" : "▣"];
}

function heading() {
  const [title, mark, facts] = [make("b"), make("i", { class: "ovi-whose" }), make("small")];
  const box = make("div", { class: "ovi-about" }, make("p", {}, title, mark), facts);
  box.show = (job, more = "") => {
    set(title, job.title);
    title.title = job.title;
    set(mark, job.visitor || "");
    mark.hidden = !job.visitor;
    set(facts, [job.model, job.facts, more].filter(Boolean).join(" · "));
  };
  return box;
}

function button(text, label, onclick, kind = "") {
  const made = make("button", { type: "button", class: kind, onclick }, text);
  made.about = (title) => made.setAttribute("aria-label", `${label}: ${title}`);
  if (kind.includes("ovi-icon")) made.title = label;
  return made;
}

// --- In the making ------------------------------------------------------------------------------------------

function runningRow({ id }) {
  const [look, about] = [thumb(), heading()];
  const bar = make("div", { class: "ovi-progress", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Progress" }, make("span"));
  const standing = make("p", { class: "ovi-standing" });
  const buttons = [
    button("Keep what there is", "End now, and keep what there is", () => ask("keep", { id })),
    button("Pause", "Pause; it starts anew when resumed", () => ask("pause", { id })),
    button("Cancel", "Cancel", () => ask("cancel", { id }), "ovi-danger"),
  ];
  const row = make("li", { class: "ovi-job ovi-making" }, look, make("div", { class: "ovi-middle" }, about, bar, standing), make("span", { class: "ovi-acts" }, ...buttons));
  row.update = (job) => {
    look.show(...(job.pictures ? [`studio/live/${id}/${job.pictures}.jpg`, "▣"] : frameOf(job)));
    about.show(job);
    const share = Math.round(job.progress * 100);
    bar.setAttribute("aria-valuenow", share);
    bar.firstElementChild.style.width = `${share}%`;
    const wishes = { cancel: "Stopping …", pause: "Pausing …", keep: "Ending …" };
    set(standing, wishes[job.wish] || [stages[job.stage] || job.stage, job.steps ? `step ${job.step} of ${job.steps}` : "",
      job.seconds_left === null ? "" : `${minutes(job.seconds_left)} left`].filter(Boolean).join(" · "));
    buttons.forEach((each) => { each.disabled = Boolean(job.wish); each.about(job.title); });
  };
  return row;
}

// --- Waiting ------------------------------------------------------------------------------------------------

function about(seconds) { // as exact as it can be known
  if (seconds < 50) return `${Math.max(5, Math.round(seconds / 5) * 5)} s`;
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.round((seconds % 3600) / 60) % 60).padStart(2, "0")} min`;
}

function waitingRow({ id }) {
  const [look, head, time, reason] = [thumb(), heading(), make("span", { class: "ovi-time" }), make("p", { class: "ovi-reason" })];
  const grip = make("button", { type: "button", class: "ovi-grip", title: "Drag, or press the arrow keys", onkeydown: (event) => steer(event, id) }, "⠿");
  const number = make("span", { class: "ovi-rank" });
  const up = button("↑", "Move up", () => step(id, -1), "ovi-icon");
  const down = button("↓", "Move down", () => step(id, 1), "ovi-icon");
  const rest = button("Pause", "Pause", () => ask(row.paused ? "resume" : "pause", { id }), "ovi-rest");
  const buttons = [
    button("Edit", "Edit", () => tell("edit", id)),
    button("Duplicate", "Duplicate", () => ask("duplicate", { id })),
    rest,
    button("Cancel", "Cancel", () => ask("cancel", { id }), "ovi-danger"),
  ];
  const row = make("li", { class: "ovi-job" }, make("span", { class: "ovi-handle" }, grip, number), look,
    make("div", { class: "ovi-middle" }, head, reason), time, make("span", { class: "ovi-acts" }, up, down, ...buttons));
  row.update = (job, place) => {
    row.paused = job.status === "paused";
    row.classList.toggle("ovi-paused", row.paused);
    look.show(...frameOf(job));
    head.show(job);
    set(number, job.number ? String(job.number) : "–");
    set(reason, job.reason);
    reason.hidden = !job.reason;
    set(time, row.paused ? "paused" : job.seconds === null ? "" : `ready in ${about(job.until + (news.left_now || 0))}`);
    time.title = job.seconds === null ? "" : `It takes about ${about(job.seconds)}.`;
    set(rest, row.paused ? "Resume" : "Pause");
    rest.setAttribute("aria-label", `${row.paused ? "Resume" : "Pause"}: ${job.title}`);
    grip.hidden = up.hidden = down.hidden = !news.owner;
    up.disabled = place === 0;
    down.disabled = place === news.waiting.length - 1;
    grip.setAttribute("aria-label", `Move ${job.title}: arrow keys, Home and End`);
    grip.draggable = row.draggable = news.owner;
    [up, down, ...buttons.filter((each) => each !== rest)].forEach((each) => each.about(job.title));
  };
  dragged(row, id);
  return row;
}

// The waiting jobs as they are, or as somebody has just put them; then places and times follow from the order.
function waiting() {
  if (!order) return news.waiting;
  const jobs = new Map(news.waiting.map((job) => [job.id, job]));
  const told = news.waiting.map((job) => job.id).join();
  if (told === order.join() || order.length !== jobs.size || order.some((id) => !jobs.has(id))) {
    order = null;
    return news.waiting;
  }
  let [number, until] = [0, 0];
  return order.map((id) => {
    const job = jobs.get(id);
    if (job.status === "paused") return job;
    until += job.seconds || 0;
    return { ...job, number: ++number, until };
  });
}

// Puts a job at a place among those that wait, here at once and then on the server.
async function moveTo(id, place) {
  const ids = waiting().map((job) => job.id);
  const from = ids.indexOf(id);
  const to = Math.max(0, Math.min(ids.length - 1, place));
  if (from < 0 || from === to) return;
  ids.splice(from, 1);
  ids.splice(to, 0, id);
  order = ids;
  draw();
  set(said, `Moved to place ${to + 1} of ${ids.length}`);
  await ask("move", { id, before: ids[to + 1] || "" });
}

function step(id, by) {
  const focused = document.activeElement;
  moveTo(id, waiting().findIndex((job) => job.id === id) + by);
  if (focused && !focused.disabled) focused.focus(); // moving a row may take the focus
  else rows.querySelector(`[data-id="${id}"] .ovi-grip`)?.focus();
}

function steer(event, id) {
  const ids = waiting().map((job) => job.id);
  const to = { ArrowUp: ids.indexOf(id) - 1, ArrowDown: ids.indexOf(id) + 1, Home: 0, End: ids.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const grip = event.currentTarget;
  moveTo(id, to);
  grip.focus();
  grip.scrollIntoView({ block: "nearest" });
}

let dragging = "";
function dragged(row, id) {
  const above = (event) => event.clientY < row.getBoundingClientRect().top + row.offsetHeight / 2;
  const mark = (where) => { row.classList.toggle("ovi-above", where === "above"); row.classList.toggle("ovi-below", where === "below"); };
  row.addEventListener("dragstart", (event) => {
    dragging = id;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", row.querySelector("b").textContent);
    row.classList.add("ovi-dragged");
  });
  row.addEventListener("dragend", () => { dragging = ""; row.classList.remove("ovi-dragged"); mark(""); draw(); });
  row.addEventListener("dragover", (event) => {
    if (!dragging || dragging === id) return;
    event.preventDefault();
    mark(above(event) ? "above" : "below");
  });
  row.addEventListener("dragleave", () => mark(""));
  row.addEventListener("drop", (event) => {
    event.preventDefault();
    mark("");
    if (!dragging || dragging === id) return;
    const ids = waiting().map((job) => job.id).filter((each) => each !== dragging);
    const moved = dragging;
    dragging = "";
    moveTo(moved, ids.indexOf(id) + (above(event) ? 0 : 1));
  });
}

// --- Over ---------------------------------------------------------------------------------------------------

function overRow({ id }) {
  const [look, title, how, reason] = [thumb(), make("b"), make("small"), make("p", { class: "ovi-reason" })];
  const open = button("Open", "Open", () => tell("show", id));
  const again = button("Try again", "Try again", () => ask("retry", { id }));
  const drop = button("Delete", "Delete", async () => {
    if (!(await ask("delete", { id }))) return;
    thrown = id;
    undo.hidden = false;
    undo.firstElementChild.textContent = `Deleted “${title.textContent}”.`;
    if (!element.contains(document.activeElement)) undo.querySelector("button").focus();
  }, "ovi-danger");
  const row = make("li", { class: "ovi-job" }, look, make("div", { class: "ovi-middle" }, make("div", { class: "ovi-about" }, make("p", {}, title), how), reason),
    make("span", { class: "ovi-acts" }, open, again, drop));
  row.update = (job) => {
    const failed = job.status === "failed";
    row.classList.toggle("ovi-failed", failed);
    look.show(...(failed ? frameOf(job) : job.status === "done" ? [job.has_picture ? `studio/thumb/${id}.jpg` : "", "♪"] : ["", "✕"]));
    set(title, job.title);
    set(how, [{ done: "ready", failed: "failed", cancelled: "cancelled" }[job.status], job.visitor,
      new Date(job.finished * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })].filter(Boolean).join(" · "));
    set(reason, failed ? job.reason : "");
    reason.hidden = !failed;
    open.hidden = job.status !== "done";
    again.hidden = job.status === "done";
    drop.hidden = job.status === "done";
    [open, again, drop].forEach((each) => each.about(job.title));
  };
  return row;
}

function overJobs() {
  const cleared = studio.recall(CLEARED) || 0;
  const failed = new Map(news.failed.map((job) => [job.id, job]));
  return [...news.failed, ...news.ended.filter((job) => !failed.has(job.id) && job.status !== "failed").slice(0, SHOWN)]
    .filter((job) => job.finished > cleared)
    .sort((a, b) => b.finished - a.finished);
}

// --- All of it ----------------------------------------------------------------------------------------------

let drawn = [];
function draw() {
  if (!element.isConnected) return;
  const jobs = waiting();
  const ended = overJobs();
  keep(now, news.running, runningRow);
  const seen = [jobs, news.owner, Math.floor((news.left_now || 0) / 5)]; // no row tells time more exactly
  if (!dragging && seen.some((each, i) => each !== drawn[i])) {
    keep(rows, jobs, waitingRow);
    drawn = seen;
  }
  keep(over.querySelector("ul"), ended, overRow);
  over.hidden = !ended.length;
  blank.hidden = Boolean(jobs.length || news.running.length);
  const queued = jobs.filter((job) => job.status === "queued");
  const paused = jobs.length - queued.length;
  const count = news.running.length + jobs.length;
  set(find(".ovi-sum b"), !count ? "" : [news.running.length ? `${news.running.length} in the making` : "", queued.length ? `${queued.length} waiting` : "",
    paused ? `${paused} paused` : ""].filter(Boolean).join(", "));
  const left = (queued.length ? queued[queued.length - 1].until : 0) + (news.left_now || 0);
  set(find(".ovi-sum span"), [queued.length || news.running.length ? left > 0 ? `all ready in about ${about(left)}` : "" : "",
    news.others ? `${news.others} of others` : ""].filter(Boolean).join(" · "));
  find(".ovi-headline").hidden = !count && !news.others;
  find("[data-act=stop_after_this]").hidden = !news.owner || !queued.length;
  find("[data-act=resume_all]").hidden = !news.owner || !paused;
  set(trouble, problem || news.trouble);
  trouble.hidden = !(problem || news.trouble);
}

const acts = {
  stop_after_this: () => ask("stop_after_this"),
  resume_all: () => ask("resume_all"),
  clear() {
    studio.remember(CLEARED, Math.max(0, ...overJobs().map((job) => job.finished)));
    draw();
  },
  undo() { undo.hidden = true; ask("restore", { id: thrown }); },
  enough() { undo.hidden = true; },
};
element.querySelectorAll("[data-act]").forEach((each) => each.addEventListener("click", acts[each.dataset.act]));

listen((told) => { news = { ...news, ...told }; draw(); });
