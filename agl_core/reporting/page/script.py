"""The page's only script: it tells the values of curves under the pointer. Without it nothing else is missing.

It reads the numbers that are in the page, writes text (never HTML), and asks for nothing.
"""

SCRIPT = """
"use strict";
for (const svg of document.querySelectorAll("svg.curves")) {
  const figure = svg.closest("figure"), names = "http://www.w3.org/2000/svg";
  const [left, right, low, high] = svg.dataset.x.split(" ").map(Number);
  const [top, bottom] = svg.dataset.y.split(" ").map(Number);
  let curves = null, tip = null, hair = null;
  const prepare = () => {
    curves = [];
    for (const path of svg.querySelectorAll("path[data-v]")) {
      const places = path.getAttribute("d").slice(1).split(/[M ]/).map(Number);
      const xs = places.filter((_, n) => n % 2 === 0), ys = places.filter((_, n) => n % 2 === 1);
      curves.unshift({name: path.dataset.n, values: path.dataset.v.split(" "), xs, ys});
    }
    tip = document.createElement("div");
    tip.className = "tip";
    figure.append(tip);
    hair = document.createElementNS(names, "line");
    hair.setAttribute("class", "hair");
    hair.setAttribute("y1", top);
    hair.setAttribute("y2", bottom);
    svg.append(hair);
  };
  const nearest = (xs, x) => {
    let from = 0, to = xs.length - 1;
    while (to - from > 1) {
      const middle = (from + to) >> 1;
      if (xs[middle] < x) from = middle; else to = middle;
    }
    return Math.abs(xs[to] - x) < Math.abs(xs[from] - x) ? to : from;
  };
  const line = (kind, text) => {
    const part = document.createElement(kind);
    part.textContent = text;
    return part;
  };
  const hide = () => {
    if (tip) { tip.style.display = "none"; hair.style.display = "none"; }
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    if (curves === null) prepare();
    const box = svg.getBoundingClientRect(), by = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * by;
    if (x < left - 4 || x > right + 4 || !curves.length) { hide(); return; }
    const found = curves.map(curve => ({curve, n: nearest(curve.xs, x)}));
    found.sort((one, other) => Math.abs(one.curve.xs[one.n] - x) - Math.abs(other.curve.xs[other.n] - x));
    const at = found[0].curve.xs[found[0].n];
    const near = found.filter(({curve, n}) => Math.abs(curve.xs[n] - at) < 3);
    near.sort((one, other) => one.curve.ys[one.n] - other.curve.ys[other.n]);
    const place = low + (at - left) / (right - left) * (high - low);
    tip.replaceChildren(line("b", svg.dataset.name + " " + Number(place.toPrecision(5))),
      ...near.map(({curve, n}) => line("span", curve.name + "  " + curve.values[n])));
    hair.setAttribute("x1", at);
    hair.setAttribute("x2", at);
    hair.style.display = "";
    tip.style.display = "block";
    const outer = figure.getBoundingClientRect(), middle = box.left - outer.left + at / by;
    const wanted = middle + 14 + tip.offsetWidth > outer.width ? middle - 14 - tip.offsetWidth : middle + 14;
    tip.style.left = Math.max(0, wanted) + "px";
    tip.style.top = Math.max(0, event.clientY - outer.top - tip.offsetHeight / 2) + "px";
  });
}
"""
