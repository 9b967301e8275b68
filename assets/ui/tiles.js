// A choice among a few things, as tiles: radio buttons underneath, so that arrows, labels and readers work.
const { make, redraw } = window.studio;
const group = `tiles-${Math.random().toString(36).slice(2)}`;
const [legend, box] = [element.querySelector("legend"), element.querySelector("fieldset > div")];

// A rectangle in the shape of the picture, or a sign.
function sign(choice) {
  if (!choice.shape) return choice.sign ? make("span", { class: "ovi-sign", "aria-hidden": "true" }, choice.sign) : null;
  const [height, width] = choice.shape;
  const scale = 24 / Math.max(height, width);
  return make("span", { class: "ovi-shape", "aria-hidden": "true" },
    make("span", { style: `width:${width * scale}px;height:${height * scale}px` }));
}

function draw() {
  legend.textContent = props.legend || "";
  element.firstElementChild.dataset.kind = props.kind || "";
  redraw(box, (props.choices || []).map((choice) =>
    make("label", { title: choice.title },
      make("input", { type: "radio", name: group, value: choice.value, checked: choice.value === props.value,
        "data-key": choice.value,
        onchange: () => { props.value = choice.value; } }),
      make("span", { class: "ovi-tile" }, sign(choice),
        make("span", {}, make("b", {}, choice.label), choice.hint ? make("small", {}, choice.hint) : null)))));
}
watch(["value", "choices"], draw);
draw();
