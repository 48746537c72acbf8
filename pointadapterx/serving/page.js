// The page that tries adapters: a file goes to the server, its answers and clouds come back.
"use strict";
(function () {
  const find = id => document.getElementById(id);
  const first = find("first"), second = find("second"), condition = find("condition"), results = find("results");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const DEPENDS = "what the answer depends on", SIDE = 704;
  let adapters = {}, file = null, asked = 0, views = [];

  async function ask(path, options) {
    const headers = find("token").value ? { Authorization: "Bearer " + find("token").value } : {};
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...headers, "Content-Type": "application/octet-stream" } });
    } catch {
      throw new Error("The server does not answer. Is it still running, and is the file still there?");
    }
    const text = await response.text();
    if (response.ok) return JSON.parse(text);
    if (response.status === 401) {
      find("needs-token").hidden = false;
      find("token").focus();
      throw new Error("This server needs a token: enter it above.");
    }
    let reason = text.replace(/^error: /, "").trim();
    try { reason = JSON.parse(text).error; } catch { /* it is plain text */ }
    throw new Error(reason || `The server refused this (${response.status}).`);
  }

  function fail(error) {
    find("state").textContent = "";
    find("error").textContent = error.message;
    find("error").hidden = false;
  }

  function options(select, names, before) {
    const chosen = select.value;
    select.replaceChildren(...before, ...names.map(name => new Option(name, name)));
    if ([...select.options].some(option => option.value === chosen)) select.value = chosen;
  }

  async function list() {
    const known = (await ask("adapters")).adapters;
    adapters = Object.fromEntries(known.map(one => [one.name, one]));
    const names = known.map(one => one.name);
    options(first, names, []);
    options(second, names, [new Option("nothing", "")]);
    find("needs-token").hidden = true;
    describe();
  }

  async function begin() {
    try {
      await list();
      find("error").hidden = true;
    } catch (error) {
      fail(error);
      return;
    }
    predict();
  }

  function describe() {
    const own = adapters[first.value] || {};
    find("kinds").textContent = own.kinds ? `${own.inputs}: ${own.kinds.join(" ")}` : "";
    const other = adapters[second.value] || {}, asks = own.condition ? own : other;
    find("said").hidden = !asks.condition;
    options(condition, asks.conditions || [], []);
  }

  async function look(name, extra = "") {
    const query = new URLSearchParams({ adapter: name, file: file.name });
    if ((adapters[name] || {}).condition) query.set("condition", condition.value);
    return ask(`look?${query}${extra}`, { method: "POST", body: file });
  }

  async function predict() {
    if (!file) return;
    const names = [first.value, ...(second.value && second.value !== first.value ? [second.value] : [])];
    const mine = ++asked;
    views = [];
    results.replaceChildren();
    find("error").hidden = true;
    find("state").textContent = `Asking about ${file.name} …`;
    const cards = await Promise.allSettled(names.map(name => look(name)));
    if (mine !== asked) return;
    find("state").textContent = "";
    cards.forEach((card, place) => {
      try {
        if (card.status === "rejected") throw card.reason;
        results.append(shown(names[place], card.value));
      } catch (error) {
        fail(card.status === "rejected" ? error : new Error(`This page cannot show the answer of ${names[place]} (${error.message}).`));
      }
    });
    if (names.some(name => !(adapters[name] || {}).loaded)) list().catch(fail);  // now more is known of them
    if (results.children.length) find("state").textContent = `Answered: ${file.name}`;
  }

  function shown(name, found) {
    const card = find("result").content.cloneNode(true).querySelector("section"), part = which => card.querySelector(which);
    const answer = found.answer;
    part("h2").textContent = name;
    part(".answer").textContent = found.text;
    part("figcaption").textContent = found.file;
    const shares = Array.isArray(answer.shares) ? answer.shares : Object.entries(answer.shares || {});  // of points, of pixels
    const ranked = answer.probabilities ? answer.classes.map((kind, k) => [kind, answer.probabilities[k]]) : shares;
    for (const [kind, share] of ranked) part(".classes").append(bar(kind, share));
    if (answer.probabilities) {
      part(".answer").textContent = answer.classes[0];
      part(".sure").textContent = novelty(answer);
    } else if (answer.shares) {
      part(".answer").textContent = ranked.length ? ranked[0][0] : "no points";
      const count = answer.size ? `${answer.size[1]} × ${answer.size[0]} pixels` : `${(answer.points || 0).toLocaleString("en")} points`;
      part(".sure").textContent = `shares of ${count}; mean confidence ${answer.confidence.toFixed(2)}`;
    }
    for (const warning of answer.warnings || []) part(".warnings").append(item(warning));
    if (found.cloud && viewer) turnable(card, name, found);
    else card.querySelectorAll(".look, .legend").forEach(element => element.remove());
    if (found.cloud && !viewer) part(".place").textContent = "This browser has no WebGL, so the cloud cannot be shown.";
    if (!found.cloud) picture(part(".place"));
    return card;
  }

  function bar(kind, share) {
    const line = document.createElement("li"), meter = document.createElement("meter");
    const label = document.createElement("span"), number = document.createElement("span");
    label.textContent = kind;
    meter.value = share;
    meter.setAttribute("aria-label", kind);
    number.textContent = `${(100 * share).toFixed(1)} %`;
    line.append(label, meter, number);
    return line;
  }

  function novelty(answer) {
    if (answer.novelty === null) return "novelty: not available";
    const hint = answer.known === false ? "unlike the training data" : "as usual for the training data";
    return `novelty ${answer.novelty.toFixed(2)}: ${hint}`;
  }

  function item(text) {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }

  function picture(place) {
    const image = document.createElement("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    image.addEventListener("error", () => image.remove());
    place.replaceWith(image);
  }

  function turnable(card, name, found) {
    const select = card.querySelector(".colours"), button = card.querySelector(".turning");
    const about = `${found.file}, ${name}: ${card.querySelector(".answer").textContent}`;
    const view = viewer.attach(card.querySelector(".place"), found.cloud, SIDE, about);
    const modes = Object.keys(found.cloud.modes);
    options(select, found.saliency ? [...modes, DEPENDS] : modes, []);
    let turning = !still;
    const press = () => button.setAttribute("aria-pressed", String(turning));
    for (const kind of ["pointerdown", "keydown"]) view.canvas.addEventListener(kind, () => { turning = false; press(); });
    button.addEventListener("click", () => { turning = !turning; press(); });
    press();
    views.push({ view, turns: () => turning });
    const recolour = () => { viewer.paint(view, select.value); legend(card, found.legends[select.value] || []); };
    select.addEventListener("change", async () => {
      if (!(select.value in found.cloud.modes)) {
        find("state").textContent = "Looking at what the answer depends on …";
        try {
          const more = await look(name, "&saliency=1");
          Object.assign(found.cloud.modes, more.cloud.modes);
          Object.assign(found.legends, more.legends);
          find("state").textContent = "";
        } catch (error) {
          fail(error);
          return;
        }
      }
      if (select.value in found.cloud.modes) recolour();
    });
    recolour();
  }

  function legend(card, meanings) {
    card.querySelector(".legend").replaceChildren(...meanings.map(([meaning, colour]) => {
      const entry = document.createElement("span"), swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = colour;
      entry.append(swatch, meaning);
      return entry;
    }));
  }

  function turn() {
    for (const { view, turns } of views) if (turns()) viewer.move(view, 0.008, 0);
    requestAnimationFrame(turn);
  }

  function choose(chosen) {
    if (!chosen) return;
    file = chosen;
    predict();
  }

  find("file").addEventListener("change", event => choose(event.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, event => {
      event.preventDefault();
      find("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") choose(event.dataTransfer.files[0]);
    });
  }
  first.addEventListener("change", () => { describe(); predict(); });
  second.addEventListener("change", () => { describe(); predict(); });
  condition.addEventListener("change", predict);
  find("token").addEventListener("change", begin);
  find("form").addEventListener("submit", event => event.preventDefault());
  begin();
  requestAnimationFrame(turn);
})();
