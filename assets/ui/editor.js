// The prompt editor. The text lies in a plain textarea; what is coloured lies behind it, letter under letter.
const { make } = window.studio;
const find = (selector) => element.querySelector(selector);
const [area, ink, script] = [find("textarea"), find(".ovi-ink"), find(".ovi-script")];
const [budget, findings] = [find(".ovi-budget"), find(".ovi-findings")];
let view = "text";
let report = null; // the server's newest answer, if it is about the text as it stands
let asked = 0;

// --- Text and colours ---------------------------------------------------------------------------------------

// As `ovi_studio.prompt.parse` reads it: a tag without its partner is plain text.
function segments(text) {
  const opening = /<S>|<AUDCAP>|(?<![A-Za-z0-9_])Audio:\s*/g;
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

function tell() {
  if (props.value === area.value) return;
  props.value = area.value;
  trigger("input");
}

let later = 0;
function changed() {
  paint();
  report = null;
  clearTimeout(later);
  later = setTimeout(() => { tell(); check(); }, 250);
}

async function check() {
  const text = area.value;
  const number = ++asked;
  const answer = await server.check({ text, variant: props.variant });
  if (number !== asked || text !== area.value) return;
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
  changed();
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
  const tool = { s: "speech", a: "sound" }[event.altKey && !event.ctrlKey ? event.key.toLowerCase() : ""];
  if (tool) { event.preventDefault(); tools[tool](); }
});

// --- Remarks and the budget of words ------------------------------------------------------------------------

function showFindings() {
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

async function edit(change) {
  const answer = await server.edit_script({ text: area.value, variant: props.variant, ...change });
  if (answer.problem) { script.querySelector(".ovi-problem").textContent = answer.problem; return; }
  area.value = answer.text;
  changed();
  report = { ...(report || {}), script: answer.script };
  if (change.then) change.then();
  else showScript();
}

function cell(label, value, change) {
  return make("input", { type: "text", "aria-label": label, placeholder: label, value: value.trim(), onchange: (event) => edit(change(event.target.value)) });
}

function showScript() {
  const shown = report && report.script;
  if (!shown) return;
  if (shown.problem) { script.replaceChildren(make("p", {}, shown.problem)); return; }
  const focused = document.activeElement && script.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const rows = shown.lines.map((line, row) =>
    make("fieldset", {},
      make("legend", {}, `Line ${row + 1}`),
      ...["lead", "who", "how", "words"].filter((column) => line.words !== null || column === "lead").map((column) => {
        const label = { lead: "What is seen before", who: "Who", how: "How they say it", words: "Words" }[column];
        const input = cell(label, line[column], (text) => ({ op: "cell", row, column, value: text }));
        input.dataset.key = `${row}.${column}`;
        input.className = `ovi-cell-${column}`;
        return input;
      }),
      make("div", { class: "ovi-row-tools" },
        make("button", { type: "button", title: "Move up", "aria-label": "Move up", disabled: row === 0, onclick: () => edit({ op: "move", row, to: row - 1 }) }, "↑"),
        make("button", { type: "button", title: "Move down", "aria-label": "Move down", disabled: row === shown.lines.length - 1, onclick: () => edit({ op: "move", row, to: row + 1 }) }, "↓"),
        make("button", { type: "button", title: "Remove this line", "aria-label": "Remove this line", onclick: () => edit({ op: "remove", row }) }, "✕"))));
  script.replaceChildren(
    ...rows,
    make("button", { type: "button", class: "ovi-add", onclick: () => edit({ op: "add" }) }, "+ Line"),
    make("label", {}, "What is seen at the end", cell("What is seen at the end", shown.ending, (value) => ({ op: "ending", value }))),
    make("label", {}, "Ambience: what else is heard", cell("Ambience", shown.ambience || "", (value) => ({ op: "ambience", value }))),
    make("p", { class: "ovi-problem", role: "alert" }));
  if (focused) script.querySelector(`[data-key="${focused}"]`)?.focus();
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

area.addEventListener("input", changed);
area.addEventListener("blur", tell);
area.addEventListener("scroll", () => { ink.scrollTop = area.scrollTop; });
watch("value", () => {
  if ((props.value || "") !== area.value) { area.value = props.value || ""; paint(); }
  check();
});
watch("variant", check);
area.value = props.value || "";
paint();
check();
new ResizeObserver(paint).observe(area.parentElement);
