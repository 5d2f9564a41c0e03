// What pages do beyond links and forms: the frame that one drags over a scatter plot, ids under the
// pointer, and figures that come anew. Without it everything else works.
"use strict";

function column(name) {
  return /^[A-Za-z_][A-Za-z0-9_]*$/.test(name) ? name : "`" + name.replaceAll("`", "``") + "`";
}

// Four digits more than the range needs, so that what was framed is what is kept.
function rounded(value, span) {
  const digits = Math.max(0, Math.min(12, 4 - Math.floor(Math.log10(span))));
  return String(Number(value.toFixed(digits)));
}

function scatter(figure) {
  const svg = figure.querySelector("#scatter");
  const brush = figure.querySelector("#brush");
  const hovered = figure.querySelector("#hovered");
  const [left, top, width, height] = svg.dataset.frame.split(" ").map(Number);
  const ranges = [svg.dataset.x, svg.dataset.y].map((text) => text.split(" ").map(Number));
  let start = null;

  function at(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [
      Math.min(Math.max(place.x, left), left + width),
      Math.min(Math.max(place.y, top), top + height),
    ];
  }

  function frame(one, two) {
    const [x, y] = [Math.min(one[0], two[0]), Math.min(one[1], two[1])];
    const sizes = { x, y, width: Math.abs(one[0] - two[0]), height: Math.abs(one[1] - two[1]) };
    for (const [name, value] of Object.entries(sizes)) brush.setAttribute(name, value);
    return sizes;
  }

  function between(name, range, from, to) {
    const span = range[1] - range[0];
    const [low, high] = [from, to].map((share) => rounded(range[0] + share * span, span));
    return `${column(name)} between ${low} and ${high}`;
  }

  svg.addEventListener("pointerdown", (event) => {
    start = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (start) frame(start, at(event));
  });
  svg.addEventListener("pointerup", (event) => {
    if (!start) return;
    const drawn = frame(start, at(event));
    start = null;
    if (drawn.width < 4 && drawn.height < 4) {
      frame([0, 0], [0, 0]);
      const mark = document.elementsFromPoint(event.clientX, event.clientY).map((one) => one.closest(".m")).find(Boolean);
      if (mark) location.href = `${figure.dataset.episode}?at=${mark.dataset.at}`;
      return;
    }
    const x = between(figure.dataset.x, ranges[0], (drawn.x - left) / width, (drawn.x + drawn.width - left) / width);
    const bottom = top + height;
    const y = between(figure.dataset.y, ranges[1], (bottom - drawn.y - drawn.height) / height, (bottom - drawn.y) / height);
    const where = document.getElementById("where");
    where.value = figure.dataset.x === figure.dataset.y ? x : `${x} and ${y}`;
    where.focus();
  });
  svg.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(".m");
    hovered.textContent = mark ? mark.querySelector("title").textContent : "";
  });
}

function poll(box) {
  const pause = document.getElementById("pause");
  const parser = new DOMParser();
  pause.hidden = false;
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", pause.getAttribute("aria-pressed") !== "true");
  });
  async function ask() {
    if (pause.getAttribute("aria-pressed") !== "true" && !document.hidden) {
      try {
        const answer = await fetch(box.dataset.poll, { headers: { accept: "text/html" } });
        if (answer.status === 401) return location.reload();
        if (answer.ok) {
          const found = parser.parseFromString(await answer.text(), "text/html");
          box.replaceChildren(...found.body.childNodes);
        }
        box.classList.toggle("stale", !answer.ok);
      } catch {
        box.classList.add("stale");  // the service may be gone for a moment
      }
    }
    setTimeout(ask, 1000 * Number(box.dataset.seconds));
  }
  setTimeout(ask, 1000 * Number(box.dataset.seconds));
}

for (const figure of document.querySelectorAll(".cloud")) {
  if (figure.querySelector("#scatter")) scatter(figure);
}
for (const box of document.querySelectorAll("[data-poll]")) poll(box);
