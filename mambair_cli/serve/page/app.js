"use strict";

// The page: a form made of what the server says its tasks take, a queue, and the slider. It holds the pictures
// itself, so that it survives a server that goes away.

const $ = (id) => document.getElementById(id);
const AHEAD = 3; // pictures at the server at a time; the others wait here
const session = hex(crypto.getRandomValues(new Uint8Array(16)));
const items = [];
const chosen = {}; // values by field, kept when the task changes
let tasks = [];
let limits = {};
let shown = null;
let token = "";

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// --- the server ---

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.status === 401) {
    await askForToken();
    return ask(path, options);
  }
  return answer;
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = $("ask");
    dialog.addEventListener("close", () => {
      keepToken($("token").value.trim());
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function keepToken(word) {
  token = word;
  sessionStorage.setItem("token", word);
}

function online(is) {
  $("offline").hidden = is;
  if (!is) $("offline").textContent = "The server does not answer. Trying again…";
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Progress of all pictures of this page, by server-sent events; EventSource could not send the token.
async function listen() {
  for (;;) {
    try {
      const answer = await ask(`/api/sessions/${session}/events`);
      if (!answer.ok) throw new Error(answer.statusText);
      online(true);
      missed();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let piece; !(piece = await reader.read()).done; ) {
        const events = (text + piece.value).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (data) heard(JSON.parse(data.slice(6)));
        }
      }
    } catch {
      // it is gone: below
    }
    online(false);
    await pause(1);
  }
}

const early = new Map(); // what was heard of a job before the answer that names it: a broken picture fails at once

function heard(job) {
  const item = items.find((other) => other.job?.id === job.id);
  if (item) take(item, job);
  else if (items.some((other) => other.state === "sending")) early.set(job.id, job);
}

// After the connection was lost: a server that was started anew knows nothing of us, so what is not done goes again.
async function missed() {
  for (const item of items.filter((other) => other.job && ["waiting", "running"].includes(other.state))) {
    const answer = await ask(`/api/jobs/${item.job.id}`).catch(() => null);
    if (answer?.status === 404) reset(item);
    else if (answer?.ok) take(item, await answer.json());
  }
  pump();
}

// --- pictures ---

function add(files) {
  const task = current();
  if (!task || task.problem) return say(task ? task.problem : "");
  for (const file of files) {
    const item = { file, name: file.name || "picture.png", task: task.task, title: task.title, values: values(task), state: "new" };
    items.push(item);
    addRow(item);
    if (file.size > limits.bytes) fail(item, `More than ${Math.round(limits.bytes / 1e6)} MB.`);
  }
  pump();
}

function reset(item) {
  Object.assign(item, { state: "new", job: null, error: "", share: 0 });
  draw(item);
}

function fail(item, error) {
  Object.assign(item, { state: "failed", error });
  draw(item);
  say(`${item.name}: ${error}`);
}

function pump() {
  const busy = items.filter((item) => ["sending", "waiting", "running"].includes(item.state)).length;
  for (const item of items.filter((other) => other.state === "new").slice(0, Math.max(0, AHEAD - busy))) send(item);
}

function send(item) {
  item.state = "sending";
  item.share = 0;
  const query = new URLSearchParams({ task: item.task, name: item.name, session, ...item.values });
  const request = new XMLHttpRequest(); // fetch tells nothing of uploads
  item.request = request;
  request.open("POST", `/api/jobs?${query}`);
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.upload.onprogress = (event) => {
    item.share = event.loaded / (event.total || 1);
    draw(item);
  };
  request.onload = async () => {
    const answer = parsed(request.responseText);
    if (request.status === 202) {
      item.job = early.get(answer.id) ?? answer;
      early.delete(answer.id);
      take(item, item.job);
    } else if (request.status === 503) {
      await later(item, Number(request.getResponseHeader("Retry-After")) || 5);
    } else if (request.status === 401) {
      await askForToken();
      await later(item, 0);
    } else {
      fail(item, [answer.detail || request.statusText, answer.hint].filter(Boolean).join(" "));
    }
    pump();
  };
  request.onerror = () => later(item, 2);
  request.send(item.file);
  draw(item);
}

async function later(item, seconds) {
  item.state = "later";
  draw(item);
  await pause(seconds);
  if (item.state !== "later") return;
  reset(item);
  pump();
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

async function take(item, job) {
  if (!items.includes(item) || ["done", "failed", "cancelled"].includes(item.state)) return;
  item.job = job;
  if (job.state === "failed") fail(item, [job.error, job.hint].filter(Boolean).join(" "));
  else if (job.state === "done") await fetched(item);
  else if (item.state !== "fetching") item.state = job.state;
  draw(item);
  pump();
}

async function fetched(item) {
  if (item.state === "fetching") return;
  item.state = "fetching";
  const answer = await ask(`/api/jobs/${item.job.id}/result`).catch(() => null);
  if (!answer?.ok) return reset(item); // the server went away with it
  item.blob = await answer.blob();
  item.url = URL.createObjectURL(item.blob);
  item.state = "done";
  say(`${item.name}: done`);
  draw(item);
  if (!shown) show(item);
}

function end(item) {
  item.request?.abort();
  if (item.job) ask(`/api/jobs/${item.job.id}`, { method: "DELETE" }).catch(() => null);
  if (["new", "later", "sending", "waiting", "running", "fetching"].includes(item.state)) {
    item.state = "cancelled";
    say(`${item.name}: cancelled`);
    draw(item);
  } else {
    remove(item);
  }
  pump();
}

function remove(item) {
  const next = item.row.nextElementSibling ?? item.row.previousElementSibling;
  const had = item.row.contains(document.activeElement);
  for (const url of [item.url, ...(item.views ?? [])]) if (url) URL.revokeObjectURL(url);
  items.splice(items.indexOf(item), 1);
  item.row.remove();
  if (had) (next?.querySelector("button:not([hidden])") ?? $("drop")).focus();
  if (shown === item) blank();
  count();
}

// --- the queue on the page ---

const STATES = {
  new: () => "waits",
  later: () => "the server is busy: soon",
  sending: (item) => `sending, ${Math.round(100 * item.share)} %`,
  waiting: (item) => (item.job.ahead ? `waits, ${item.job.ahead} before it` : "next"),
  running: (item) => (item.job.tiles[1] ? `tile ${item.job.tiles[0]} of ${item.job.tiles[1]}` : "working"),
  fetching: () => "fetching",
  failed: (item) => item.error,
  cancelled: () => "cancelled",
  done: (item) => summary(item),
};

function summary(item) {
  const { record } = item.job.result;
  const sizes = [record.input_size, record.output_size].map((size) => size.join("\u00d7"));
  return `${[...new Set(sizes)].join(" \u2192 ")}, ${item.job.seconds.toFixed(1)} s`;
}

function addRow(item) {
  const row = $("row").content.cloneNode(true).firstElementChild;
  item.row = row;
  row.querySelector("b").textContent = item.name;
  row.querySelector("progress").setAttribute("aria-label", `Progress of ${item.name}`);
  row.querySelector(".show").addEventListener("click", () => show(item));
  row.querySelector(".again").addEventListener("click", () => again(item));
  row.querySelector(".end").addEventListener("click", () => end(item));
  $("queue").append(row);
  draw(item);
  row.scrollIntoView({ block: "nearest" });
}

function again(item) {
  const task = current();
  if (task.problem) return say(task.problem);
  Object.assign(item, { task: task.task, title: task.title, values: values(task) });
  reset(item);
  pump();
  item.row.querySelector(".end").focus();
}

function draw(item) {
  const { row, state } = item;
  if (!row) return;
  const over = ["done", "failed", "cancelled"].includes(state);
  row.className = `${over ? "quiet" : ""} ${state}`;
  row.querySelector(".what span").textContent = `${item.title}: ${STATES[state](item)}`;
  const bar = row.querySelector("progress");
  const [done, total] = (state === "running" && item.job.tiles) || [0, 0];
  if (state === "fetching" || (state === "running" && done === total)) bar.removeAttribute("value"); // no share is known
  else bar.value = state === "sending" ? item.share : total ? done / total : 0;
  const save = row.querySelector(".save");
  save.hidden = row.querySelector(".show").hidden = state !== "done";
  if (state === "done") {
    save.href = item.url;
    save.download = item.job.result.name;
  }
  save.setAttribute("aria-label", `Save the result of ${item.name}`);
  row.querySelector(".show").setAttribute("aria-label", `Compare before and after of ${item.name}`);
  row.querySelector(".again").hidden = !over || state === "done";
  row.querySelector(".again").setAttribute("aria-label", `Do ${item.name} again`);
  const button = row.querySelector(".end");
  button.textContent = over ? "Remove" : "Cancel";
  button.setAttribute("aria-label", `${button.textContent} ${item.name}`);
  count();
}

function count() {
  const done = items.filter((item) => item.state === "done");
  $("counts").textContent = items.length ? `${done.length} of ${items.length} done` : "";
  $("all").disabled = !done.length;
  $("clear").disabled = !items.length;
}

function say(text) {
  $("news").textContent = text;
}

async function saveAll() {
  const done = items.filter((item) => item.state === "done");
  const size = done.reduce((sum, item) => sum + item.blob.size + 512, 0);
  if (size > MOST_IN_A_ZIP) return say("Together they are too large for one zip: save them one by one.");
  const url = URL.createObjectURL(await zipped(done.map((item) => ({ name: item.job.result.name, blob: item.blob }))));
  make("a", { href: url, download: "mambair.zip" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- before and after ---

async function show(item) {
  shown = item;
  for (const other of items) other.row.setAttribute("aria-current", String(other === item));
  const { record, notes } = item.job.result;
  const how = [record.model ? `with ${record.model}` : "resampled", record.device && `on ${record.device}`].filter(Boolean).join(" ");
  $("line").textContent = `${item.title} ${how}: ${summary(item)}`;
  $("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
  $("command").value = item.job.command;
  $("same").hidden = false;
  item.views ??= await pair(item);
  if (shown !== item) return;
  if (!item.views) {
    item.views = undefined;
    $("stage").replaceChildren(make("p", { class: "soft" }, "The server no longer has what is to be compared. The result can be saved."));
    return;
  }
  const slider = $("slider").content.cloneNode(true).firstElementChild;
  const [width, height] = item.size;
  Object.assign(slider.dataset, { width, height });
  const captions = [item.name, item.job.result.name];
  [".before", ".after"].forEach((name, index) => {
    const image = slider.querySelector(`img${name}`);
    image.src = item.views[index];
    image.alt = `${index ? "After" : "Before"}: ${captions[index]}`;
    slider.querySelector(index ? ".right" : ".left").textContent = captions[index];
  });
  startSlider(slider);
  $("stage").replaceChildren(slider);
}

async function pair(item) {
  try {
    const blobs = [];
    for (const side of ["before", "after"]) {
      const answer = await ask(`/api/jobs/${item.job.id}/${side}`);
      if (!answer.ok) return null;
      blobs.push(await answer.blob());
    }
    const bitmap = await createImageBitmap(blobs[1]);
    item.size = [bitmap.width, bitmap.height];
    bitmap.close();
    return blobs.map((blob) => URL.createObjectURL(blob));
  } catch {
    return null;
  }
}

function blank() {
  shown = null;
  $("stage").replaceChildren(make("p", { class: "soft" }, "Before and after will be shown here."));
  $("line").textContent = "";
  $("notes").replaceChildren();
  $("same").hidden = true;
}

async function copy() {
  const field = $("command");
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    document.execCommand("copy"); // other machines come without https, where there is no clipboard
  }
  say("Copied");
  $("copy").textContent = "Copied";
  await pause(1.5);
  $("copy").textContent = "Copy";
}

// --- the form ---

const current = () => tasks.find((task) => task.task === new FormData($("form")).get("task"));

function values(task) {
  const data = new FormData($("form"));
  return Object.fromEntries(task.fields.map((field) => [field.name, data.get(field.name) ?? ""]).filter(([, value]) => value !== ""));
}

function fillTasks() {
  for (const [index, task] of tasks.entries()) {
    const radio = make("input", { type: "radio", name: "task", value: task.task, checked: index === 0 });
    $("tasks").append(make("label", {}, radio, task.title, ...(task.problem ? [make("span", { class: "soft" }, "needs a model")] : [])));
  }
  $("tasks").addEventListener("change", fillFields);
  fillFields();
}

function fillFields() {
  const task = current();
  $("sentence").textContent = task.problem || task.sentence;
  $("drop").disabled = Boolean(task.problem);
  const groups = new Map([["", []]]);
  for (const field of task.fields) {
    if (!groups.has(field.group)) groups.set(field.group, []);
    groups.get(field.group).push(widget(field, task));
  }
  const parts = [...groups].map(([name, fields]) => (name ? make("details", {}, make("summary", {}, name), ...fields) : make("div", {}, ...fields)));
  $("fields").replaceChildren(...(task.problem ? [] : parts));
}

// One option, as its kind wants it.
function widget(field, task) {
  const id = `field-${field.name}`;
  const box = make("div", { class: "field" });
  const help = make("small", { id: `${id}-help` }, field.help);
  const common = { id, name: field.name, "aria-describedby": help.id };
  const few = field.words.length && !field.free;
  if (field.switch && !field.off) {
    const input = make("input", { ...common, type: "checkbox", value: "true", checked: chosen[field.name] === "true" });
    box.append(make("label", { class: "check" }, input, field.label), help);
  } else if (few && field.words.length <= 4 && !field.group) {
    const parts = ["", ...field.words].map((word) => {
      const input = make("input", { type: "radio", name: field.name, value: word, checked: (chosen[field.name] ?? "") === word, "aria-describedby": help.id });
      return make("label", {}, input, word || "Auto");
    });
    box.append(make("span", { class: "label", id: `${id}-label` }, field.label), make("div", { class: "parts", role: "radiogroup", "aria-labelledby": `${id}-label` }, ...parts), help);
  } else if (few || field.switch) {
    const words = field.switch ? [["true", field.on.slice(2)], ["false", field.off.slice(2)]] : field.words.map((word) => [word, word]);
    if (!(task.needs_model && field.name === "model")) words.unshift(["", "Automatic"]);
    const select = make("select", common, ...words.map(([value, text]) => make("option", { value, selected: chosen[field.name] === value }, text)));
    box.append(make("label", { for: id }, field.label), select, help);
  } else {
    const number = field.number && field.words.every((word) => Number(word));
    const step = field.whole ? 1 : "any";
    const kind = number ? { type: "number", min: field.low, max: field.high, step } : { type: "text" };
    const input = make("input", { ...common, ...kind, placeholder: "automatic", value: chosen[field.name] ?? "" });
    box.append(make("label", { for: id }, field.label), make("div", { class: "offers" }, input, ...offers(field, input)), help);
  }
  return box;
}

// The first words of a field, or three points of a span from 0 to 1, as buttons beside its input: one press fills it,
// another empties it.
function offers(field, input) {
  const words = field.low === 0 && field.high === 1 ? ["0", "0.5", "1"] : field.words.slice(0, 3);
  const buttons = words.map((word) => make("button", { type: "button", "aria-label": `${field.label} ${word}` }, word));
  const mark = () => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === input.value)));
  input.addEventListener("input", mark);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      input.value = input.value === button.textContent ? "" : button.textContent;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }
  mark();
  return buttons;
}

// --- beginning ---

async function begin() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  if (fragment.has("token")) {
    keepToken(fragment.get("token"));
    history.replaceState(null, "", location.pathname);
  }
  token = sessionStorage.getItem("token") ?? "";
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  $("place").textContent = here ? "Pictures stay on this machine." : `Pictures go to ${location.host}, and nowhere else.`;

  $("form").addEventListener("submit", (event) => event.preventDefault());
  $("form").addEventListener("input", (event) => {
    const { name, type, checked, value } = event.target;
    if (name !== "task") chosen[name] = type === "checkbox" ? String(checked) : value;
  });
  $("drop").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    add($("files").files);
    $("files").value = "";
  });
  $("all").addEventListener("click", saveAll);
  $("clear").addEventListener("click", () => {
    for (const item of [...items]) {
      end(item);
      if (items.includes(item)) remove(item);
    }
    $("drop").focus();
  });
  $("copy").addEventListener("click", copy);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    add(event.dataTransfer.files);
  });

  for (;;) {
    try {
      ({ tasks, limits } = await (await ask("/api/tasks")).json());
      break;
    } catch {
      online(false);
      await pause(1);
    }
  }
  fillTasks();
  listen();
}

begin();
