// The run under way: stage, step, time left, the picture and the sound as they are now.
const { make, minutes, drawWaveform, peaksOf, listen } = window.studio;
const find = (selector) => element.querySelector(selector);
const [picture, audio, canvas, play] = [find("img"), find("audio"), find("canvas"), find(".ovi-play")];
const names = {
  "": "Starting", load: "Loading the model", "encode text": "Reading the prompt", "first frame": "First frame",
  denoise: "Denoising", decode: "Decoding", mux: "Writing the file",
};
let following = ""; // the job that is shown
let pictures = 0;
let sounds = 0;
let peaks = [];

function showRun(run) {
  const share = Math.round(run.progress * 100);
  find(".ovi-progress").setAttribute("aria-valuenow", share);
  find(".ovi-progress span").style.width = `${share}%`;
  find(".ovi-standing b").textContent = names[run.stage] || run.stage;
  const step = run.steps ? ` · step ${run.step} of ${run.steps}` : "";
  const left = run.seconds_left === null ? "" : ` · ${minutes(run.seconds_left)} left`;
  find(".ovi-standing span").textContent = step + left;
  find(".ovi-note").textContent = run.note;
  if (run.pictures > pictures) {
    pictures = run.pictures;
    picture.src = `studio/live/${run.id}/${pictures}.jpg`;
    picture.dataset.number = pictures;
  }
  if (run.sounds > sounds) hear(run);
}

picture.addEventListener("load", () => { picture.hidden = false; });
picture.addEventListener("error", () => { picture.hidden = true; });

async function hear(run) {
  sounds = run.sounds;
  const url = `studio/live/${run.id}/${sounds}.wav`;
  try {
    peaks = await peaksOf(url);
  } catch {
    return; // the run is over already
  }
  find(".ovi-hear").hidden = false;
  if (audio.paused) audio.src = url;
  drawWaveform(canvas, peaks);
}
play.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
audio.addEventListener("play", () => { play.textContent = "❚❚"; });
audio.addEventListener("pause", () => { play.textContent = "▶"; });
audio.addEventListener("timeupdate", () => drawWaveform(canvas, peaks, audio.currentTime / (audio.duration || 1)));

function begin(run) {
  following = run.id;
  pictures = sounds = 0;
  picture.hidden = find(".ovi-hear").hidden = true;
  picture.removeAttribute("src");
  audio.pause();
}

function say(state, job) {
  props.value = { state, job };
  trigger("change");
}

listen((news) => {
  const run = news.running[0];
  find(".ovi-trouble").hidden = !news.trouble;
  find(".ovi-trouble").textContent = news.trouble;
  if (following && (!run || run.id !== following)) {
    const over = following;
    following = "";
    if (news.ended.some((job) => job.id === over)) say("ended", over);
    else if (!run) say("waiting", over); // paused, or taken back
  }
  if (run && run.id !== following) {
    begin(run);
    say("running", run.id);
  }
  find(".ovi-live").hidden = !run;
  document.body.classList.toggle("ovi-running", Boolean(run));
  find(".ovi-waiting").textContent = news.waiting.length ? `${news.waiting.length} more waiting` : "";
  if (run) showRun(run);
});
watch("value", () => {});
