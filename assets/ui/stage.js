// The run under way: stage, step, time left, the picture and the sound as they are now.
const { minutes, drawWaveform, peaksOf, playButton, listen } = window.studio;
const find = (selector) => element.querySelector(selector);
const [picture, audio, canvas, play] = [find("img"), find("audio"), find("canvas"), find(".ovi-play")];
const names = {
  "": "Starting", "draw frame": "Drawing the first frame", load: "Loading the model", "encode text": "Reading the prompt",
  "draw frame": "Drawing the first frame", "first frame": "Reading the first frame",
  denoise: "Denoising", decode: "Decoding", mux: "Writing the file",
};
let following = ""; // the job that is shown
let known = null; // when which job ended, as far as was told
let pictures = 0;
let sounds = 0;
let newest = ""; // sound
let asked = 0; // when Generate was pressed, until its run is seen: on a phone it stands below all settings
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
  // The room that picture and sound will take, so that nothing moves when they come.
  find(".ovi-look").style.aspectRatio = run.shape ? run.shape.join(" / ") : "";
  find(".ovi-hear").hidden = run.silent;
  find(".ovi-hear").style.visibility = peaks.length ? "" : "hidden";
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
  find(".ovi-hear").style.visibility = "";
  newest = url;
  if (audio.paused) audio.src = url;
  drawWaveform(canvas, peaks);
}
play.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
audio.addEventListener("ended", () => { audio.src = newest; }); // what is heard is not cut off by what comes
playButton(play, audio, "the sound as it is now");
audio.addEventListener("timeupdate", () => drawWaveform(canvas, peaks, audio.currentTime / (audio.duration || 1)));

function begin(job) {
  following = job;
  pictures = sounds = 0;
  peaks = [];
  picture.hidden = true;
  picture.removeAttribute("src");
  audio.pause();
  audio.removeAttribute("src");
}

// The newest of the jobs that have ended since the last news: some are over before anybody saw them run.
function unseenEnd(ended) {
  const unseen = (each) => each.status !== "cancelled" && known.get(each.id) !== each.finished;
  const newest = known && ended.find(unseen);
  known = new Map(ended.map((each) => [each.id, each.finished]));
  return newest;
}

listen((news) => {
  const run = news.running[0];
  find(".ovi-trouble").hidden = !news.trouble;
  find(".ovi-trouble").textContent = news.trouble;
  const job = run ? run.id : "";
  const missed = unseenEnd(news.ended);
  if (job !== following || (!job && missed)) {
    props.value = { job, over: following || missed?.id || "", at: missed?.finished ?? 0 }; // gradio tells the page
    begin(job);
  }
  find(".ovi-live").hidden = !run;
  document.body.classList.toggle("ovi-running", Boolean(run));
  find(".ovi-waiting").textContent = news.waiting.length ? `${news.waiting.length} more waiting` : "";
  if (run) showRun(run);
  if (run && Date.now() - asked < 10_000) {
    asked = 0;
    if (window.matchMedia("(max-width: 760px)").matches) find(".ovi-live").scrollIntoView();
  }
});
document.addEventListener("click", (event) => { if (event.target.closest?.("#generate")) asked = Date.now(); });
