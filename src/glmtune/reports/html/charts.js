"use strict";

// Values beside the pointer: those of each curve at its step nearest to it. The listeners are the document's,
// so charts that come later show theirs too.
(() => {
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle; else high = middle;
    }
    return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
  };

  const show = (box, event) => {
    const chart = box.closest("[data-hover]"), language = box.closest("html[lang], .report[lang]").lang;
    const cross = chart.querySelector(".cross"), tip = chart.querySelector(".tip");
    const { low, high, series } = JSON.parse(chart.dataset.hover);
    const place = (step) => 100 * (step - low) / (high - low);
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
      line.append(document.createElement("i"), `${each.name[language] ?? each.name.en} `);
      line.appendChild(document.createElement("em")).textContent = found[i][1].toLocaleString("en", { maximumSignificantDigits: 5 });
    });
    cross.hidden = tip.hidden = false;
    tip.style.left = at < 0.5 ? `calc(${place(step)}% + 10px)` : "auto";
    tip.style.right = at < 0.5 ? "auto" : `calc(${100 - place(step)}% + 10px)`;
  };

  let last = null;
  const move = (event) => {
    const box = event.target.closest?.("[data-hover] .box") ?? null;
    if (last && last !== box) for (const each of last.querySelectorAll(".cross, .tip")) each.hidden = true;
    last = box;
    if (box) show(box, event);
  };
  document.addEventListener("pointermove", move);
  document.addEventListener("pointerdown", move);
  document.documentElement.addEventListener("pointerleave", move);
})();
