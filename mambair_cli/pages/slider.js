"use strict";

// Before/after: the handle is dragged or moved by the arrow keys, a click on the picture puts it there.
function startSlider(slider) {
  const frame = slider.querySelector(".frame");
  const handle = slider.querySelector(".handle");
  const buttons = slider.querySelectorAll(".zoom button");
  slider.style.setProperty("--ratio", `${slider.dataset.width}/${slider.dataset.height}`);

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
