// The prompt editor. The text lies in a plain textarea; what is coloured lies behind it, letter under letter.
const { make, redraw, settle } = window.studio;
const find = (selector) => element.querySelector(selector);
const [area, ink, script] = [find("textarea"), find(".ovi-ink"), find(".ovi-script")];
const [budget, findings] = [find(".ovi-budget"), find(".ovi-findings")];
let view = "text";
let report = null; // the server's newest answer, if it is about the text as it stands
let asked = 0;

// --- Text and colours ---------------------------------------------------------------------------------------

// As `ovi_studio.prompt.parse` reads it: a tag without its partner is plain text.
function segments(text) {
  // Python's white space, which is not quite this language's
  const opening = /<S>|<AUDCAP>|(?<![A-Za-z0-9_])Audio:[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*/g;
  const closing = { "<S>": "<E>", "<AUDCAP>": "<ENDAUDCAP>" };
  const found = [];
  let plain = 0;
  for (let match; (match = opening.exec(text)); ) {
    const close = closing[match[0]];
    const begin = match.index + match[0].length;
    const end = close ? text.indexOf(close, begin) : text.length;
    if (end < 0) continue;
    if (plain < match.index) found.push({ kind: "text", text: text.slice(plain, match.index) });
    plain = opening.lastIndex = end + (close ? close.length : 0);
    const kind = match[0] === "<S>" ? "speech" : "caption";
    found.push({ kind, opening: match[0], text: text.slice(begin, end), closing: close || "" });
    if (!close) break;
  }
  if (plain < text.length) found.push({ kind: "text", text: text.slice(plain) });
  return found;
}
element.segments = segments; // for tests

function paint() {
  ink.replaceChildren(
    ...segments(area.value).map((part) =>
      part.kind === "text"
        ? document.createTextNode(part.text)
        : make("span", { class: `ovi-${part.kind}` }, make("i", {}, part.opening), part.text, make("i", {}, part.closing))),
    "\n");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

let known = props.value || ""; // the text as the page knows it; what is being typed may be ahead of it
function tell() {
  if (props.value === area.value || waiting !== null) return;
  props.value = known = area.value;
  trigger("input");
}

let later = 0;
function changed(wait = 250) {
  paint();
  report = null;
  findings.inert = true; // these are about another text
  clearTimeout(later);
  later = setTimeout(() => { tell(); check(); }, wait);
}

async function check() {
  const text = area.value;
  const number = ++asked;
  const answer = await server.check({ text, variant: props.variant }).catch(() => null); // the server is away
  if (!answer || answer.problem || number !== asked || text !== area.value) return;
  report = answer;
  showBudget();
  showFindings();
  if (view === "script") showScript();
}

// Replaces a stretch of the text in a way that the browser's own undo can take back.
function replace(start, end, text, from = start + text.length, to = from) {
  area.focus();
  area.setSelectionRange(start, end);
  if (!document.execCommand("insertText", false, text)) area.setRangeText(text, start, end, "end");
  area.setSelectionRange(from, to);
  changed(0);
}

// --- Helpers ------------------------------------------------------------------------------------------------

const tools = {
  speech() {
    const [start, end] = [area.selectionStart, area.selectionEnd];
    const words = area.value.slice(start, end);
    replace(start, end, `<S>${words}<E>`, start + 3, start + 3 + words.length);
  },
  sound() {
    const text = area.value;
    const [start, end] = [area.selectionStart, area.selectionEnd];
    const words = text.slice(start, end).trim();
    const parts = segments(text);
    const captionAt = parts.findIndex((part) => part.kind === "caption");
    if (captionAt >= 0) { // there is one: go to its end, with the selection if that lies before it
      const before = parts.slice(0, captionAt).map((part) => (part.opening || "") + part.text + (part.closing || "")).join("");
      const caption = parts[captionAt];
      const at = before.length + caption.opening.length + caption.text.length;
      if (!words || end > before.length) return replace(at, at, "", at);
      replace(start, at, text.slice(end, at) + `, ${words}`);
      return;
    }
    const [opening, closing] = props.variant_dialect === "audcap" ? ["<AUDCAP>", "<ENDAUDCAP>"] : ["Audio: ", ""];
    const rest = (text.slice(0, start) + text.slice(words ? end : start)).trimEnd();
    const lead = rest + (rest ? " " : "") + opening;
    replace(0, text.length, lead + words + closing, lead.length, lead.length + words.length);
  },
};

element.querySelectorAll("[data-tool]").forEach((button) => {
  button.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the selection
  button.addEventListener("click", () => { show("text"); tools[button.dataset.tool](); });
});
area.addEventListener("keydown", (event) => {
  const tool = { KeyS: "speech", KeyA: "sound" }[event.altKey && !event.ctrlKey ? event.code : ""]; // Alt changes the letter
  if (tool) { event.preventDefault(); tools[tool](); }
});

// --- Remarks and the budget of words ------------------------------------------------------------------------

function showFindings() {
  findings.inert = false;
  findings.replaceChildren(...report.findings.map((finding) =>
    make("li", { class: `ovi-${finding.severity}` },
      make("button", { type: "button", class: "ovi-where", title: "Show the place",
        onclick: () => { show("text"); area.focus(); area.setSelectionRange(finding.start, finding.end); } }, finding.message),
      finding.mended === null ? null : make("button", { type: "button", class: "ovi-mend",
        onclick: () => replace(0, area.value.length, finding.mended) }, "Mend"))));
  const mendable = report.findings.filter((finding) => finding.mended !== null);
  if (mendable.length > 1) findings.append(make("li", { class: "ovi-all" },
    make("button", { type: "button", class: "ovi-mend", onclick: () => replace(0, area.value.length, report.mended) }, "Mend all")));
}

function showBudget() {
  const { words, limit, unit, share } = report.budget;
  budget.hidden = !words;
  const meter = budget.firstElementChild;
  meter.setAttribute("aria-valuenow", words);
  meter.setAttribute("aria-valuemax", limit);
  meter.classList.toggle("ovi-over", share > 1.1);
  meter.firstElementChild.style.width = `${Math.min(100, share * 100)}%`;
  budget.lastElementChild.textContent = `${words} spoken ${unit}; about ${limit} fit into ${report.budget.seconds} s`;
}

// --- The script view ----------------------------------------------------------------------------------------

// One change after another, each to the text that the one before has made.
let editing = Promise.resolve();
function edit(change) {
  editing = settle(editing.then(() => apply(change)).catch(() => {})); // the server is away: the text stays
}

async function apply(change) {
  const answer = await server.edit_script({ text: area.value, variant: props.variant, ...change });
  const problem = script.querySelector(".ovi-problem");
  if (problem) problem.textContent = answer.problem || "";
  if (answer.problem) return;
  area.value = answer.text;
  changed();
  tell();
  report = { findings: [], script: answer.script };
  showScript();
}

const labels = { lead: "What is seen before", who: "Who", how: "How they say it", words: "Words" };
let shape = ""; // of the rows that are drawn

function showScript() {
  const shown = report && report.script;
  if (!shown) return;
  const now = shown.problem || JSON.stringify(shown.lines.map((line) => line.words === null));
  if (now !== shape) redraw(script, shown.problem ? [make("p", {}, shown.problem)] : drawScript(shown));
  shape = now;
  if (!shown.problem) fillScript(shown);
}

// Cells keep their element, and so the focus, a click that has begun, and what is being typed.
function fillScript(shown) {
  for (const input of script.querySelectorAll("input")) {
    const [row, column] = input.dataset.key.split(".");
    const value = ((column ? shown.lines[row][column] : shown[row]) || "").trim();
    const typing = input === document.activeElement && input.value !== input.dataset.told;
    if (!typing) input.value = value;
    input.dataset.told = value;
  }
}

function drawScript(shown) {
  const last = shown.lines.length - 1;
  return [
    ...shown.lines.map((line, row) =>
      make("fieldset", {},
        make("legend", {}, `Line ${row + 1}`),
        ...Object.keys(labels).filter((column) => line.words !== null || column === "lead").map((column) =>
          cell(labels[column], `${row}.${column}`, (value) => ({ op: "cell", row, column, value }))),
        make("div", { class: "ovi-row-tools" },
          rowTool("↑", "Move up", row === 0, { op: "move", row, to: row - 1 }),
          rowTool("↓", "Move down", row === last, { op: "move", row, to: row + 1 }),
          rowTool("✕", "Remove this line", false, { op: "remove", row })))),
    make("button", { type: "button", class: "ovi-add", "data-key": "add", onclick: () => edit({ op: "add" }) }, "+ Line"),
    make("label", {}, "What is seen at the end", cell("What is seen at the end", "ending", (value) => ({ op: "ending", value }))),
    make("label", {}, "Ambience: what else is heard", cell("Ambience", "ambience", (value) => ({ op: "ambience", value }))),
    make("p", { class: "ovi-problem", role: "alert" }),
  ];
}

function cell(label, key, change) {
  const input = make("input", { type: "text", "aria-label": label, placeholder: label, "data-key": key, "data-told": "",
    class: `ovi-cell-${key.split(".").pop()}` });
  input.addEventListener("change", () => {
    input.dataset.told = input.value;
    edit(change(input.value));
  });
  return input;
}

function rowTool(sign, label, disabled, change) {
  return make("button", { type: "button", title: label, "aria-label": `${label}: line ${change.row + 1}`, disabled,
    "data-key": `${change.row} ${sign}`, onclick: () => edit(change) }, sign);
}

function show(name) {
  view = name;
  element.querySelectorAll("[data-view]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === name));
  find(".ovi-paper").hidden = name !== "text";
  script.hidden = name !== "script";
  if (name === "script") report ? showScript() : check();
  else paint();
}
element.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => show(button.dataset.view)));

// --- Coming and going ---------------------------------------------------------------------------------------

let written = false; // by hand, and so to be kept
let waiting = null; // what is to be filled in once the editor is seen: elsewhere the browser keeps nothing to undo
// Another text in the place of what was written, which the browser's undo brings back.
function fill(text) {
  waiting = written && !element.offsetParent ? text : null;
  if (waiting !== null) return;
  const [focused, top] = [document.activeElement, window.scrollY];
  if (written) area.focus({ preventScroll: true });
  if (document.activeElement === area) area.select();
  if (document.activeElement !== area || !document.execCommand(text ? "insertText" : "delete", false, text)) area.value = text;
  if (focused !== area) {
    area.blur();
    focused?.focus({ preventScroll: true });
  }
  window.scrollTo(window.scrollX, top);
  paint();
}

area.addEventListener("input", () => { written = true; changed(); });
area.addEventListener("blur", tell);
area.addEventListener("scroll", () => { ink.scrollTop = area.scrollTop; });
watch("value", () => {
  const value = props.value || "";
  if (value !== known && value !== area.value) fill(value);
  known = value;
  check();
});
watch("variant", check);
watch("conversion", () => {
  const [from, to] = props.conversion;
  if (area.value !== from || from === to) return;
  fill(to);
  changed(0);
});
area.value = known;
paint();
check();
new ResizeObserver(() => (waiting !== null && element.offsetParent ? fill(waiting) : paint())).observe(area.parentElement);
