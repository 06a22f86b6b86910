"use strict";

// The button shows the page in the other language.
const root = document.documentElement;
const button = document.getElementById("language");
button.hidden = false;
button.addEventListener("click", () => { root.lang = root.lang === "zh" ? "en" : "zh"; });

// Values beside the pointer: those of each curve at its step nearest to it.
function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle; else high = middle;
  }
  return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
}

for (const chart of document.querySelectorAll("[data-hover]")) {
  const { low, high, series } = JSON.parse(chart.dataset.hover);
  const box = chart.querySelector(".box"), cross = chart.querySelector(".cross"), tip = chart.querySelector(".tip");
  const place = (step) => 100 * (step - low) / (high - low);
  const show = (event) => {
    const frame = box.getBoundingClientRect();
    const at = Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1);
    const found = series.map((each) => nearest(each.points, low + at * (high - low)));
    // the step of the curve with a value nearest to the pointer
    const distance = (point) => Math.abs(place(point[0]) - 100 * at);
    const step = found.reduce((one, other) => (distance(other) < distance(one) ? other : one))[0];
    cross.style.left = `${place(step)}%`;
    tip.replaceChildren();
    const head = tip.appendChild(document.createElement("b"));
    head.textContent = step.toLocaleString("en");
    series.forEach((each, i) => {
      if (found[i][0] !== step) return;
      const line = tip.appendChild(document.createElement("span"));
      line.className = `c${each.colour % 7}`;
      line.append(document.createElement("i"), `${each.name[root.lang] ?? each.name.en} `);
      line.appendChild(document.createElement("em")).textContent = found[i][1].toLocaleString("en", { maximumSignificantDigits: 5 });
    });
    cross.hidden = tip.hidden = false;
    tip.style.left = at < 0.5 ? `calc(${place(step)}% + 10px)` : "auto";
    tip.style.right = at < 0.5 ? "auto" : `calc(${100 - place(step)}% + 10px)`;
  };
  box.addEventListener("pointermove", show);
  box.addEventListener("pointerdown", show);
  box.addEventListener("pointerleave", () => { cross.hidden = tip.hidden = true; });
}

// On paper everything is open.
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => { opened = closed(); for (const each of opened) each.open = true; });
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
