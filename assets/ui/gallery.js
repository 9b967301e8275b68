// The finished clips: found, selected, named, tagged, exported, deleted and brought back. Clips play while pointed at.
const { make, redraw, listen } = window.studio;
const find = (selector) => element.querySelector(selector);
const [grid, next, blank, trouble] = [find(".ovi-gallery"), find(".ovi-next"), find(".ovi-blank"), find(".ovi-trouble")];
const [search, every, counted, undo] = [find(".ovi-words-in"), find(".ovi-every"), find(".ovi-tally"), find(".ovi-undo")];
const [labels, bin] = [find("[data-sheet=labels]"), find("[data-sheet=bin]")];
const PAUSE = 250; // milliseconds: after the last key, before the search; and before a clip plays
const wanted = { text: "", variant: "", tag: "", favourite: false, oldest: false };
let clips = [];
let total = 0;
let tags = [];
let chosen = new Set(); // ids
let last = ""; // the box that was ticked before, for ranges
let asked = 0;
let pages = 1;

// --- Looking ------------------------------------------------------------------------------------------------

// `more` adds a page; else what is shown is looked at anew, as far as it had been unfolded.
async function look({ more = false } = {}) {
  const number = ++asked;
  const skip = more ? clips.length : 0;
  const unfolded = pages + (more ? 1 : 0);
  const answer = await server.see_shelf({ ...wanted, pages: unfolded, skip });
  if (number !== asked) return;
  if (!answer || answer.problem) return say(answer ? answer.problem : "The server does not answer. Is it still running?");
  say("");
  pages = unfolded;
  const known = new Set(more ? clips.map((clip) => clip.id) : []); // a new clip shifts those that come later
  clips = more ? clips.concat(answer.clips.filter((clip) => !known.has(clip.id))) : answer.clips;
  total = answer.total;
  tags = answer.tags;
  chosen = new Set(clips.map((clip) => clip.id).filter((id) => chosen.has(id)));
  offer("variant", "All models", answer.models);
  offer("tag", "All tags", tags.map((tag) => ({ value: tag, label: tag })));
  const thrown = find("[data-act=bin]");
  thrown.hidden = !answer.trash;
  thrown.textContent = `Deleted (${answer.trash})`;
  draw();
}

function anew() {
  pages = 1;
  return look();
}

function say(text) {
  trouble.hidden = !text;
  trouble.textContent = text;
}

function offer(by, all, choices) {
  const select = find(`[data-by=${by}]`);
  const values = JSON.stringify(choices);
  if (select.dataset.values === values) return;
  select.dataset.values = values;
  select.replaceChildren(make("option", { value: "" }, all),
    ...choices.map(({ value, label }) => make("option", { value }, label)));
  select.value = wanted[by];
  if (select.selectedIndex < 0) select.value = wanted[by] = "";
  select.hidden = !choices.length;
}

let later = 0;
search.addEventListener("input", () => {
  clearTimeout(later);
  later = setTimeout(() => { wanted.text = search.value; anew(); }, PAUSE);
});
element.querySelectorAll("[data-by]").forEach((select) => select.addEventListener("change", () => {
  wanted[select.dataset.by] = select.dataset.by === "oldest" ? Boolean(select.value) : select.value;
  anew();
}));
next.addEventListener("click", async () => {
  const first = clips.length;
  await look({ more: true });
  grid.children[first]?.querySelector(".ovi-watch").focus();
});

// --- Drawing ------------------------------------------------------------------------------------------------

const drawn = new Map(); // id → its clip as text, and its card

function draw() {
  const cards = clips.map((clip) => {
    const text = JSON.stringify(clip);
    if (drawn.get(clip.id)?.text !== text) drawn.set(clip.id, { text, card: card(clip) });
    return drawn.get(clip.id).card;
  });
  const kept = new Set(clips.map((clip) => clip.id));
  [...drawn.keys()].filter((id) => !kept.has(id)).forEach((id) => drawn.delete(id));
  const same = cards.length === grid.children.length && cards.every((each, i) => grid.children[i] === each);
  if (!same) redraw(grid, cards);
  next.hidden = clips.length >= total;
  next.textContent = `Show more (${total - clips.length} left)`;
  drawBlank();
  drawChosen();
}

function drawBlank() {
  const sifted = Boolean(wanted.text.trim() || wanted.variant || wanted.tag || wanted.favourite);
  blank.hidden = clips.length > 0;
  find(".ovi-chosen").hidden = !clips.length;
  find(".ovi-sieve").classList.toggle("ovi-idle", !clips.length && !sifted);
  blank.querySelector("h2").textContent = sifted ? "No clip fits" : "Nothing here yet";
  blank.querySelector("p").textContent = sifted
    ? "Search for fewer words, or take away a filter."
    : "Every clip that you make is kept here. Write one under Create, and press Generate.";
  blank.querySelector("button").hidden = !sifted;
}

function day(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString([], { day: "numeric", month: "short", year: date.getFullYear() === new Date().getFullYear() ? undefined : "numeric" });
}

function card(clip) {
  const key = (name) => `${name} ${clip.id}`;
  const act = (name, label, onclick) =>
    make("button", { type: "button", class: `ovi-icon ovi-icon-${name}`, title: label, "aria-label": `${label}: ${clip.title}`, "data-key": key(name), onclick });
  const screen = make("button", { type: "button", class: "ovi-watch", "aria-label": `Open ${clip.title}`, "data-key": key("open"), onclick: () => tell("show", clip.id) },
    clip.has_picture ? make("img", { src: `studio/thumb/${clip.id}.jpg`, alt: "", loading: "lazy" })
      : make("span", { class: "ovi-tone", "aria-hidden": "true" }, "♪"));
  const item = make("li", { class: "ovi-clip", "data-id": clip.id },
    make("div", { class: "ovi-frame" }, screen,
      make("label", { class: "ovi-tick" }, make("input", { type: "checkbox", "aria-label": `Select ${clip.title}`, "data-key": key("tick"),
        checked: chosen.has(clip.id), onclick: (event) => tick(clip.id, event.target.checked, event.shiftKey) })),
      make("button", { type: "button", class: "ovi-star", "aria-pressed": String(clip.favourite), "aria-label": `Favourite: ${clip.title}`, "data-key": key("star"),
        title: clip.favourite ? "No favourite any more" : "Favourite", onclick: () => change({ what: clip.favourite ? "plain" : "favourite", ids: [clip.id] }) },
        clip.favourite ? "★" : "☆")),
    make("h3", { title: clip.title }, clip.title),
    make("p", { class: "ovi-meta" }, [clip.visitor, clip.model, day(clip.made), `seed ${clip.seed}`].filter(Boolean).join(" · ")),
    clip.tags.length ? make("p", { class: "ovi-tags" }, ...clip.tags.map((tag) =>
      make("button", { type: "button", title: "Show clips with this tag", "data-key": key(`tag ${tag}`), onclick: () => sift("tag", tag) }, tag))) : null,
    make("p", { class: "ovi-acts" },
      make("button", { type: "button", class: "ovi-use", "data-key": key("use"), "aria-label": `Use settings of ${clip.title}`, onclick: () => tell("reuse", clip.id) }, "Use settings"),
      act("label", "Name and tags", () => openLabels([clip])),
      act("delete", "Delete", () => remove([clip.id]))));
  playWhilePointedAt(item, screen, clip);
  return item;
}

// Only what is looked at is fetched: the video is made when the pointer or the focus rests on it.
function playWhilePointedAt(item, screen, clip) {
  if (!clip.has_picture) return;
  let video = null;
  let waiting = 0;
  const begin = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (video || !item.isConnected || item.leaving) return;
      video = make("video", { src: `studio/clip/${clip.id}.mp4`, playsinline: true, loop: true, "aria-hidden": "true", tabindex: "-1" });
      video.muted = true;
      video.addEventListener("playing", () => item.classList.add("ovi-playing"));
      video.addEventListener("error", () => { item.classList.add("ovi-gone"); screen.title = "Its file is not where it was made."; });
      screen.append(video);
      video.play().catch(() => {}); // it was left before it began
    }, PAUSE);
  };
  const end = () => {
    clearTimeout(waiting);
    const looked = item.matches(":hover") || item.contains(document.activeElement);
    if (!video || (looked && !item.leaving)) return;
    item.classList.remove("ovi-playing");
    video.removeAttribute("src");
    video.load();
    video.remove();
    video = null;
  };
  item.leave = () => { item.leaving = true; end(); }; // its file is about to go
  item.addEventListener("pointerenter", begin);
  item.addEventListener("pointerleave", end);
  screen.addEventListener("focus", begin);
  item.addEventListener("focusout", () => setTimeout(end));
}

// --- Selecting ----------------------------------------------------------------------------------------------

function tick(id, on, range) {
  const ids = clips.map((clip) => clip.id);
  const [from, to] = [ids.indexOf(last), ids.indexOf(id)].sort((a, b) => a - b);
  const meant = range && from >= 0 ? ids.slice(from, to + 1) : [id];
  meant.forEach((each) => (on ? chosen.add(each) : chosen.delete(each)));
  last = id;
  drawChosen();
}

every.addEventListener("change", () => {
  chosen = new Set(every.checked ? clips.map((clip) => clip.id) : []);
  drawChosen();
});

function drawChosen() {
  const count = chosen.size;
  grid.querySelectorAll(".ovi-clip").forEach((item) => {
    const on = chosen.has(item.dataset.id);
    item.classList.toggle("ovi-on", on);
    item.querySelector(".ovi-tick input").checked = on;
  });
  grid.classList.toggle("ovi-choosing", count > 0);
  find(".ovi-chosen").classList.toggle("ovi-some", count > 0);
  every.checked = count > 0 && count === clips.length;
  every.indeterminate = count > 0 && count < clips.length;
  counted.textContent = count ? `${count} selected` : `${total} clip${total === 1 ? "" : "s"}`;
  for (const name of ["tag", "pack", "delete"]) find(`[data-act=${name}]`).disabled = !count;
  find("[data-act=compare]").disabled = count !== 2;
}

// --- What happens -------------------------------------------------------------------------------------------

function tell(name, value) {
  props.value = value;
  if (name === "show") trigger("show");
  if (name === "reuse") trigger("reuse");
  if (name === "compare") trigger("compare");
}

async function change(asked) {
  const answer = (await server.change_clips(asked)) || { changed: [], problem: "The server does not answer. Is it still running?" };
  await look();
  if (answer.problem) say(answer.problem);
  return answer;
}

function sift(by, value) {
  wanted[by] = value;
  find(`[data-by=${by}]`).value = value;
  anew();
}

let thrown = []; // what was deleted last, to be brought back
async function remove(ids) {
  const name = clips.find((clip) => clip.id === ids[0])?.title;
  const place = clips.findIndex((clip) => clip.id === ids[0]);
  ids.forEach((id) => drawn.get(id)?.card.leave?.());
  thrown = (await change({ what: "delete", ids })).changed;
  ids.forEach((id) => { if (drawn.has(id)) drawn.get(id).card.leaving = false; });
  if (!thrown.length) return;
  undo.hidden = false;
  undo.querySelector("span").textContent = thrown.length === 1 ? `Deleted “${name}”.` : `Deleted ${thrown.length} clips.`;
  if (!element.contains(document.activeElement)) // the card that had the focus is gone
    (grid.children[Math.min(place, clips.length - 1)]?.querySelector(".ovi-watch") || search).focus();
}

const acts = {
  favourites(button) {
    wanted.favourite = !wanted.favourite;
    button.setAttribute("aria-pressed", wanted.favourite);
    anew();
  },
  clear() {
    Object.assign(wanted, { text: "", variant: "", tag: "", favourite: false });
    search.value = "";
    element.querySelectorAll("[data-by=variant], [data-by=tag]").forEach((select) => { select.value = ""; });
    find("[data-act=favourites]").setAttribute("aria-pressed", "false");
    anew();
  },
  compare: () => tell("compare", [...chosen].join(" ")),
  tag: () => openLabels(clips.filter((clip) => chosen.has(clip.id)), true),
  delete: () => remove([...chosen]),
  async undo() {
    undo.hidden = true;
    await change({ what: "restore", ids: thrown });
  },
  enough() { undo.hidden = true; },
  async pack(button) {
    button.disabled = true;
    button.textContent = "Packing …";
    const answer = (await server.pack_clips({ ids: clips.map((clip) => clip.id).filter((id) => chosen.has(id)) })) || {};
    button.textContent = "Export as zip";
    drawChosen();
    say(answer.problem || answer.note || (answer.address ? "" : "The server does not answer. Is it still running?"));
    if (!answer.address) return;
    const link = make("a", { href: answer.address, download: "ovi-clips.zip", hidden: true });
    element.append(link);
    link.click();
    link.remove();
  },
  bin: openBin,
  async empty() {
    const answer = await change({ what: "empty" });
    bin.querySelector(".ovi-problem").textContent = answer.problem || "";
    undo.hidden = true;
    openBin();
  },
};
element.querySelectorAll("[data-act]").forEach((button) =>
  button.addEventListener("click", () => acts[button.dataset.act](button)));

// --- Sheets -------------------------------------------------------------------------------------------------

element.querySelectorAll("[data-close]").forEach((button) =>
  button.addEventListener("click", () => button.closest("dialog").close()));

// One clip: its name and all its tags. Several: tags that are added to each.
function openLabels(meant, several = false) {
  const form = labels.querySelector("form");
  labels.querySelector("h2").textContent = several ? `Add tags to ${meant.length} clip${meant.length === 1 ? "" : "s"}` : "Name and tags";
  form.querySelector(".ovi-name-in").hidden = several;
  form.elements.name.value = several ? "" : meant[0].name;
  form.elements.tags.value = several ? "" : meant[0].tags.join(", ");
  labels.querySelector(".ovi-problem").textContent = "";
  const written = () => form.elements.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean);
  labels.querySelector(".ovi-known").replaceChildren(...tags.map((tag) => make("button", { type: "button", onclick: () => {
    form.elements.tags.value = [...new Set([...written(), tag])].join(", ");
    form.elements.tags.focus();
  } }, tag)));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const ids = meant.map((clip) => clip.id);
    const answer = await change(several ? { what: "tag", ids, tags: written() }
      : { what: "label", ids, name: form.elements.name.value, tags: written() });
    if (answer.problem) labels.querySelector(".ovi-problem").textContent = answer.problem;
    else labels.close();
  };
  labels.showModal();
  form.elements[several ? "tags" : "name"].focus();
}

async function openBin() {
  const answer = (await server.see_trash({})) || { things: [] };
  bin.querySelector(".ovi-problem").textContent = answer.problem || "";
  const things = answer.things || [];
  bin.querySelector(".ovi-things").replaceChildren(...things.map((thing) => make("li", {},
    make("span", {}, make("b", {}, thing.title), make("small", {}, `deleted ${day(thing.deleted)}`)),
    make("button", { type: "button", "aria-label": `Restore ${thing.title}`, onclick: async () => {
      const told = await change({ what: "restore", ids: [thing.id] });
      thrown = thrown.filter((id) => id !== thing.id);
      if (!thrown.length) undo.hidden = true;
      await openBin();
      if (told.problem) bin.querySelector(".ovi-problem").textContent = told.problem;
    } }, "Restore"))));
  if (!things.length) return bin.close();
  if (!bin.open) bin.showModal();
}

// --- Keeping up ---------------------------------------------------------------------------------------------

// A new clip is seen at once; what other tabs changed, when this one is opened again.
let ended = null;
let shown = false;
listen((news) => {
  const now = JSON.stringify((news.ended || []).filter((job) => job.status === "done").map((job) => job.id));
  const changed = ended !== null && now !== ended;
  ended = now;
  if (changed && shown) look();
});
new IntersectionObserver(([entry]) => {
  if (entry.isIntersecting && !shown) look();
  shown = entry.isIntersecting;
}).observe(find(".ovi-sieve"));
