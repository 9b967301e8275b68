// Two takes in step. The left one leads; the right one follows its clock. One of the two is heard.
const { make } = window.studio;
const find = (selector) => element.querySelector(selector);
const [pair, play, slider, sound] = [find(".ovi-pair"), find(".ovi-play"), find("input[type=range]"), find(".ovi-switch")];
const APART = 0.05; // seconds: about a frame
let videos = [];
let heard = 0;

function hear(index) {
  heard = index;
  videos.forEach((video, i) => { video.muted = i !== index; });
  sound.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", i === index));
}

function keepStep(leader, follower) {
  if (leader !== videos[0]) return; // other clips are compared now
  slider.value = leader.duration ? (1000 * leader.currentTime) / leader.duration : 0;
  if (Math.abs(leader.currentTime - follower.currentTime) > APART) follower.currentTime = leader.currentTime;
  requestAnimationFrame(() => keepStep(leader, follower));
}

function draw() {
  const clips = props.value || [];
  const open = clips.length === 2;
  element.firstElementChild.hidden = !open;
  document.body.classList.toggle("ovi-comparing", open);
  videos.forEach((video) => video.pause());
  videos = [];
  pair.replaceChildren();
  if (!open) return;
  videos = clips.map((clip) => make("video", { src: `studio/clip/${clip.id}.mp4`, playsinline: true, preload: "auto", loop: true }));
  pair.append(...clips.map((clip, i) => make("figure", {}, videos[i],
    make("figcaption", {}, make("b", {}, `${"AB"[i]} · ${clip.title}`), make("small", {}, clip.differs)))));
  sound.querySelectorAll("button").forEach((button) => button.remove());
  sound.append(...clips.map((_, i) => make("button", { type: "button", onclick: () => hear(i) }, `Sound ${"AB"[i]}`)));
  hear(0);
  const both = (act) => videos.forEach((video) => act(video));
  play.onclick = () => (videos[0].paused ? both((video) => video.play()) : both((video) => video.pause()));
  videos[0].addEventListener("play", () => { play.textContent = "❚❚"; });
  videos[0].addEventListener("pause", () => { play.textContent = "▶"; });
  slider.oninput = () => both((video) => { video.currentTime = (slider.value / 1000) * (videos[0].duration || 0); });
  keepStep(...videos);
}
watch("value", draw);
draw();
