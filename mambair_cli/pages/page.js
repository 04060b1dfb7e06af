"use strict";

// Before/after: the handle is dragged or moved by the arrow keys, a click on the picture puts it there.
for (const slider of document.querySelectorAll(".slider")) {
  const frame = slider.querySelector(".frame");
  const handle = slider.querySelector(".handle");
  const buttons = slider.querySelectorAll(".zoom button");

  const move = (percent) => {
    const split = Math.min(100, Math.max(0, percent));
    slider.style.setProperty("--split", `${split}%`);
    handle.setAttribute("aria-valuenow", Math.round(split));
  };
  const follow = (event) => {
    const box = frame.getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width);
  };

  frame.addEventListener("click", follow);
  frame.addEventListener("pointerdown", (event) => {
    // A finger on the picture scrolls it; only on the handle it drags.
    if (event.pointerType === "touch" && event.target !== handle) return;
    event.preventDefault();
    handle.focus({ preventScroll: true });
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", follow);
    frame.addEventListener("lostpointercapture", () => frame.removeEventListener("pointermove", follow), { once: true });
    follow(event);
  });
  handle.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -20, PageUp: 20, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(Number(handle.getAttribute("aria-valuenow")) + steps[event.key]);
  });

  for (const button of buttons) {
    button.addEventListener("click", () => {
      // Zoom in device pixels: at 1 every pixel of the picture is one of the screen.
      const zoom = Number(button.value);
      const width = (zoom * Number(slider.dataset.width)) / window.devicePixelRatio;
      if (zoom) slider.style.setProperty("--width", `${width}px`);
      else slider.style.removeProperty("--width");
      slider.classList.toggle("large", zoom > 1);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
}

// Tables: a click on a heading sorts by its column, another one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return down * (column && x !== "" && y !== "" ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
