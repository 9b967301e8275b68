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

  // Peaks 0…1 as bars; the part already played in the accent's colour.
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

  // One connection for all widgets. It comes back by itself when the server was away.
  const listeners = new Set();
  let source = null;
  let last = null;
  function listen(listener) {
    listeners.add(listener);
    if (last) listener(last);
    if (!source) {
      source = new EventSource("studio/live");
      source.onmessage = (message) => {
        last = JSON.parse(message.data);
        document.body.classList.remove("ovi-away");
        listeners.forEach((each) => each(last));
      };
      source.onerror = () => document.body.classList.add("ovi-away");
      window.addEventListener("pagehide", () => source.close());
    }
  }

  document.addEventListener("keydown", (event) => {
    const click = (id) => {
      const button = document.querySelector(`#${id}`);
      if (!button || button.disabled || !button.offsetParent) return;
      event.preventDefault();
      button.click();
    };
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) click("generate");
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) click("stop");
  });

  return { make, minutes, drawWaveform, peaksOf, listen };
})();
