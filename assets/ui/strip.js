// The newest clips. One click shows a clip; two ticked ones are compared.
const { make, redraw } = window.studio;
const [heading, list, hint] = [element.querySelector("h3"), element.querySelector("ul"), element.querySelector(".ovi-hint")];
let ticked = [];

function pick(name, data) {
  props.value = { clips: props.value.clips, picked: name, ids: data };
  trigger("select");
}

function tick(id, on) {
  ticked = ticked.filter((each) => each !== id).concat(on ? [id] : []).slice(-2);
  list.querySelectorAll("input").forEach((box) => { box.checked = ticked.includes(box.value); });
  hint.textContent = ticked.length === 1 ? "Tick another one to see the two side by side." : "";
  if (ticked.length === 2) pick("compare", ticked);
  else if (document.body.classList.contains("ovi-comparing")) pick("compare", []);
}

function draw() {
  const clips = (props.value && props.value.clips) || [];
  heading.hidden = hint.hidden = !clips.length;
  ticked = ticked.filter((id) => clips.some((clip) => clip.id === id));
  redraw(list, clips.map((clip) =>
    make("li", {},
      make("button", { type: "button", "data-key": clip.id, title: clip.title, "aria-label": `Show ${clip.title}`, onclick: () => pick("show", [clip.id]) },
        clip.has_picture ? make("img", { src: `studio/thumb/${clip.id}.jpg`, alt: "", loading: "lazy" })
          : make("span", { class: clip.status === "done" ? "ovi-note-sign" : "ovi-note-sign ovi-no-clip", "aria-hidden": "true" },
            clip.status === "done" ? "♪" : "✕"),
        make("span", {}, clip.status === "done" ? clip.label : clip.status)),
      clip.status === "done" ? make("label", { title: "Compare" },
        make("input", { type: "checkbox", "data-key": `tick ${clip.id}`, value: clip.id, checked: ticked.includes(clip.id),
          "aria-label": `Compare ${clip.title}`, onchange: (event) => tick(clip.id, event.target.checked) })) : null)));
}
// The comparison was closed by something else: nothing is ticked any more.
element.closest("#right").addEventListener("parted", () => {
  if (ticked.length < 2) return;
  ticked = [];
  list.querySelectorAll("input").forEach((box) => { box.checked = false; });
});
watch("value", draw);
draw();
