// What every widget of the page shares: making elements, words for numbers, waveforms, and news of the runs.
window.studio = (() => {
  // Text goes in as text, never as markup: prompts, names and files are other people's words.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === false || value === null || value === undefined) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  function minutes(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  }

  // Peaks 0…1 as bars, a thin line where there are none; the part already played in the accent's colour.
  function drawWaveform(canvas, peaks, played = 0) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const bars = Math.floor(width / 3);
    for (let bar = 0; bar < bars; bar++) {
      const from = Math.floor((bar * peaks.length) / bars);
      const to = Math.max(from + 1, Math.floor(((bar + 1) * peaks.length) / bars));
      const peak = Math.max(...peaks.slice(from, to), 0);
      const tall = Math.max(1.5, Math.min(1, peak) * (height - 4));
      context.fillStyle = bar / bars < played ? style.getPropertyValue("--ovi-accent") : style.getPropertyValue("--ovi-quiet");
      context.fillRect(bar * 3, (height - tall) / 2, 2, tall);
    }
  }

  async function peaksOf(url, count = 300) {
    const data = await (await fetch(url)).arrayBuffer();
    const context = new OfflineAudioContext(1, 1, 16000);
    const samples = (await context.decodeAudioData(data)).getChannelData(0);
    const per = Math.max(1, Math.floor(samples.length / count));
    return Array.from({ length: count }, (_, i) =>
      samples.slice(i * per, (i + 1) * per).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0));
  }

  // A button that plays and pauses, called by what it does.
  function playButton(button, media, what = "") {
    const show = () => {
      button.textContent = media.paused ? "▶" : "❚❚";
      button.setAttribute("aria-label", `${media.paused ? "Play" : "Pause"}${what && ` ${what}`}`);
    };
    media.addEventListener("play", show);
    media.addEventListener("pause", show);
    show();
  }

  // Draws anew only what has changed, and leaves the focus where it was: `key` names the element that has it.
  function redraw(box, children) {
    const focused = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    box.replaceChildren(...children);
    if (focused) box.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  // One connection for all widgets. It comes back by itself when the server was away, and rests while nobody looks:
  // a browser has few connections to one server, and every tab would hold one.
  const listeners = new Set();
  let source = null;
  let last = null;
  function connect() {
    source = new EventSource("studio/live");
    source.onmessage = (message) => {
      last = { ...last, ...JSON.parse(message.data) }; // each tells what has changed
      document.body.classList.remove("ovi-away");
      listeners.forEach((each) => each(last));
    };
    source.onerror = () => document.body.classList.add("ovi-away");
  }
  function rest() {
    source?.close();
    source = null;
  }
  function listen(listener) {
    listeners.add(listener);
    if (last) listener(last);
    if (!source) connect();
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : source || connect()));
  window.addEventListener("pagehide", rest);

  // What was typed and is still on its way to the page's state: nothing is generated before it has arrived.
  let settled = Promise.resolve();
  let unsettled = 0;
  function settle(work) {
    unsettled++;
    settled = Promise.allSettled([settled, work]).then(() => { unsettled--; });
    return work;
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("#generate");
    if (!button || !unsettled) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    await settled;
    button.click();
  }, true);

  function click(event, id) {
    const button = document.getElementById(id);
    if (!button || button.disabled || !button.offsetParent) return;
    event.preventDefault();
    const writing = document.activeElement;
    writing.blur(); // so that a field tells what stands in it
    writing.focus({ preventScroll: true });
    button.click();
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) click(event, "generate");
    const open = event.target.closest?.('[aria-expanded="true"][role], dialog[open]'); // Escape is for these first
    if (event.key === "Escape" && !open) click(event, "stop");
  });

  // What a browser keeps of this page. A full or closed storage keeps nothing: then it lasts as long as the page.
  function recall(name, storage = "localStorage") {
    try {
      return JSON.parse(window[storage].getItem(name));
    } catch { // closed, or another version wrote it
      return null;
    }
  }
  function remember(name, value, storage = "localStorage") {
    try {
      if (value === null) window[storage].removeItem(name);
      else window[storage].setItem(name, JSON.stringify(value));
    } catch { /* full or closed */ }
  }

  // The look that was chosen under System; gradio reads it from the address.
  const LOOK = "ovi-studio-look";
  const look = () => recall(LOOK) || "system";
  function wear(chosen) {
    const address = new URL(window.location);
    if (chosen === "system") address.searchParams.delete("__theme");
    else address.searchParams.set("__theme", chosen);
    window.history.replaceState(window.history.state, "", address);
    const dark = chosen === "dark" || (chosen === "system" && window.matchMedia("(prefers-color-scheme: dark)").matches);
    document.body?.classList.toggle("dark", dark);
    remember(LOOK, chosen === "system" ? null : chosen);
  }
  if (look() !== "system") wear(look());

  return { make, minutes, drawWaveform, peaksOf, playButton, redraw, listen, settle, recall, remember, look, wear };
})();
