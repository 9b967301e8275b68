// Two takes in step. The one that is heard leads; the other, silent, hurries or waits until it is beside it.
const { make } = window.studio;
const find = (selector) => element.querySelector(selector);
const [pair, play, slider, sound] = [find(".ovi-pair"), find(".ovi-play"), find("input[type=range]"), find(".ovi-switch")];
const FAR = 0.4; // seconds apart from which hurrying would take too long
let videos = [];
let heard = 0;
let playing = false;

function hear(index) {
  heard = index;
  videos.forEach((video, i) => { video.muted = i !== index; });
  sound.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", i === index));
}

function setPlaying(on) {
  playing = on;
  play.textContent = on ? "❚❚" : "▶";
  play.setAttribute("aria-label", on ? "Pause both" : "Play both");
  videos.forEach((video) => (on ? video.play().catch(() => {}) : video.pause()));
}

function goTo(seconds) {
  videos.forEach((video) => { video.currentTime = Math.min(seconds, video.duration || 0); });
}

const length = () => Math.max(...videos.map((video) => video.duration || 0));

function keepStep(ofThese) {
  if (ofThese !== videos) return; // other clips are compared now
  const [leader, follower] = heard ? [videos[1], videos[0]] : videos;
  const longest = videos[0].duration >= videos[1].duration ? videos[0] : videos[1];
  if (playing && longest.ended) { // the shorter one waits at its end
    goTo(0);
    setPlaying(true);
  }
  const apart = leader.currentTime - follower.currentTime;
  const both = playing && !leader.ended && !follower.ended && !follower.seeking;
  leader.playbackRate = 1;
  follower.playbackRate = both ? Math.max(0.5, Math.min(2, 1 + 4 * apart)) : 1;
  if (both && Math.abs(apart) > FAR) follower.currentTime = leader.currentTime;
  if (document.activeElement !== slider || playing) slider.value = (1000 * longest.currentTime) / (length() || 1);
  requestAnimationFrame(() => keepStep(ofThese));
}

function draw() {
  const clips = props.value || [];
  const open = clips.length === 2;
  element.firstElementChild.hidden = !open;
  document.body.classList.toggle("ovi-comparing", open);
  setPlaying(false);
  videos = [];
  pair.replaceChildren();
  if (!open) element.closest("#right")?.dispatchEvent(new Event("parted"));
  if (!open) return;
  videos = clips.map((clip) =>
    make("video", { src: `studio/clip/${clip.id}.mp4`, playsinline: true, preload: "auto", hidden: !clip.has_picture }));
  pair.append(...clips.map((clip, i) => make("figure", {}, videos[i],
    clip.has_picture ? null : make("span", { class: "ovi-note-sign", "aria-hidden": "true" }, "♪"),
    make("figcaption", {}, make("b", {}, `${"AB"[i]} · ${clip.title}`), make("small", {}, clip.differs)))));
  sound.querySelectorAll("button").forEach((button) => button.remove());
  sound.append(...clips.map((_, i) => make("button", { type: "button", onclick: () => hear(i) }, `Sound ${"AB"[i]}`)));
  hear(0);
  keepStep(videos);
}
play.addEventListener("click", () => setPlaying(!playing));
slider.addEventListener("input", () => goTo((slider.value / 1000) * length()));
watch("value", draw);
draw();
