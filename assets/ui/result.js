// A finished clip: player, waveform, what it was made from, downloads.
const { make, drawWaveform } = window.studio;
const find = (selector) => element.querySelector(selector);
const [video, canvas, play, time] = [find("video"), find("canvas"), find(".ovi-play"), find("time")];
let peaks = [];
let address = "";

function showTime() {
  const total = video.duration || 0;
  time.textContent = `${video.currentTime.toFixed(1)} / ${total.toFixed(1)} s`;
  if (peaks.length) drawWaveform(canvas, peaks, total ? video.currentTime / total : 0);
}

function draw() {
  const clip = props.value;
  element.firstElementChild.hidden = !clip;
  document.body.classList.toggle("ovi-showing", Boolean(clip));
  if (!clip) { video.pause(); video.removeAttribute("src"); address = ""; return; }
  peaks = clip.peaks;
  const url = `studio/clip/${clip.id}.mp4`;
  if (url !== address) {
    address = video.src = url;
    video.play().catch(() => {}); // browsers may want a click first
  }
  find(".ovi-player").hidden = !clip.has_picture;
  canvas.hidden = !clip.has_sound;
  find("h2").textContent = (clip.favourite ? "★ " : "") + clip.title;
  find(".ovi-words").textContent = clip.prompt;
  find("dl").replaceChildren(...clip.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  find("nav").replaceChildren(...clip.downloads.map(([name, href]) => make("a", { href, download: "" }, name)));
  showTime();
}

play.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
video.addEventListener("click", () => play.click());
video.addEventListener("play", () => { play.textContent = "❚❚"; play.setAttribute("aria-label", "Pause"); });
video.addEventListener("pause", () => { play.textContent = "▶"; play.setAttribute("aria-label", "Play"); });
video.addEventListener("timeupdate", showTime);
video.addEventListener("loadedmetadata", showTime);
canvas.addEventListener("click", (event) => {
  video.currentTime = (event.offsetX / canvas.clientWidth) * (video.duration || 0);
});
new ResizeObserver(showTime).observe(canvas);
watch("value", draw);
draw();
