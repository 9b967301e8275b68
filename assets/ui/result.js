// A finished clip: player, waveform, what it was made from, downloads.
const { make, drawWaveform, playButton } = window.studio;
const find = (selector) => element.querySelector(selector);
const [video, canvas, play, time] = [find("video"), find("canvas"), find(".ovi-play"), find("time")];
let peaks = [];
let address = "";

function showTime() {
  const total = video.duration || 0;
  time.textContent = `${video.currentTime.toFixed(1)} / ${total.toFixed(1)} s`;
  canvas.setAttribute("aria-valuemax", total.toFixed(1));
  canvas.setAttribute("aria-valuenow", video.currentTime.toFixed(1));
  drawWaveform(canvas, peaks, total ? video.currentTime / total : 0);
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
  find("h2").textContent = (clip.favourite ? "★ " : "") + clip.title;
  find(".ovi-words").textContent = clip.prompt;
  find("dl").replaceChildren(...clip.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  find("nav").replaceChildren(...clip.downloads.map(([name, href, file]) => make("a", { href, download: file }, name)));
  showTime();
}

play.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
video.addEventListener("click", () => play.click());
playButton(play, video);
video.addEventListener("timeupdate", showTime);
video.addEventListener("loadedmetadata", showTime);
function goTo(seconds) {
  video.currentTime = Math.max(0, Math.min(video.duration || 0, seconds));
}
canvas.addEventListener("click", (event) => goTo((event.offsetX / canvas.clientWidth) * (video.duration || 0)));
canvas.addEventListener("keydown", (event) => {
  const to = { ArrowLeft: video.currentTime - 0.2, ArrowRight: video.currentTime + 0.2, Home: 0, End: video.duration }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  goTo(to);
});
new ResizeObserver(showTime).observe(canvas);
watch("value", draw);
draw();
