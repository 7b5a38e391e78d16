// SPDX-License-Identifier: MIT
// Draws what status.json, history.json and map.json tell. Names go into the page as text only.
"use strict";
(() => {
  const POLL_MS = 1000, MAP_EVERY = 2, SAMPLES = 240, CELLS_MAX = 4096, TIMEOUT_MS = 8000;
  const LEFT = 68, RIGHT = 16;  // of a plot: room for its labels
  const WAIT_SECONDS = 2, STUCK_SECONDS = 10;  // a request waits, and is worth a warning if the store seems well
  const KINDS = ["absent", "stored", "cached", "dirty", "uploading", "unknown"];
  const STATES = {
    idle: ["idle", ""], changing: ["locking or letting go", "warn"], attached: ["in use", "good"],
    kept: ["not all stored", "warn"], suspended: ["suspended", "bad"], lost: ["lock lost", "bad"],
  };
  const isFailing = () => status.store.trouble_seconds > 0;
  const isStuck = (each) => each.now.oldest_seconds >= (isFailing() ? WAIT_SECONDS : STUCK_SECONDS);
  const stateOf = (each) => each.state !== "attached" || !isStuck(each) ? STATES[each.state]
    : ["requests wait", isFailing() ? "bad" : "warn"];
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  let status = null, chosen = null, samples = null, count = 0, map = null, view = null;
  let cursor = null, turn = 0, lastGood = null, failures = 0;

  // Words and numbers

  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const rounded = (x) => x >= 99.95 ? x.toFixed(0) : x >= 9.995 ? x.toFixed(1) : x.toFixed(2);
  const trimmed = (x) => rounded(x).replace(/\.0+$|(\.\d*[1-9])0+$/, "$1");
  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  function scaled(bytes) {
    let unit = 0;
    while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit++; }
    return [unit ? trimmed(bytes) : bytes.toFixed(0), UNITS[unit]];
  }
  const inBytes = (bytes) => scaled(bytes).join(" ");
  function seconds(s) {
    if (s === null) return ["–", ""];
    if (s < 0.001) return [(s * 1e6).toFixed(0), "µs"];
    return s < 1 ? [trimmed(s * 1e3), "ms"] : [trimmed(s), "s"];
  }
  const inSeconds = (s) => seconds(s).join(" ");
  function duration(s) {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const first = parts.findIndex(([size]) => s >= size);
    if (first < 0) return "0 s";
    return parts.slice(first, first + 2).map(([size, unit], i) =>
      [Math.floor(s / size) % (i ? parts[first][0] / size : Infinity), unit])
      .filter(([n], i) => n || !i).map((each) => each.join(" ")).join(" ");
  }
  // Characters that would hide what a name is: control, zero width, direction
  const visible = (text) => String(text).replace(
    /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/gu,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

  // Elements

  function put(target, text) {
    const element = typeof target === "string" ? $(target) : target;
    if (element.textContent !== text) element.textContent = text;
  }
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function figure(id, [number, unit], mood = "") {
    const small = make("small", "", unit);
    $(id).className = mood;
    $(id).replaceChildren(number, ...(unit ? [small] : []));
  }
  function pill(element, [text, mood]) {
    put(element, text);
    element.className = `pill ${mood}`;
  }
  function legend(id, entries) {
    $(id).replaceChildren(...entries.map(([className, text, value]) => {
      const span = make("span");
      span.append(make("i", `swatch ${className}`), text);
      if (value !== undefined) span.append(" ", make("b", "", value));
      return span;
    }));
  }

  // Asking

  async function ask(path, query) {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), TIMEOUT_MS);
    try {
      const answer = await fetch(query ? `${path}?${new URLSearchParams(query)}` : path,
        { signal: abort.signal, cache: "no-store" });
      return answer.ok ? await answer.json() : null;
    } finally {
      clearTimeout(timer);
    }
  }

  async function poll() {
    try {
      const got = await ask("status.json");
      if (!got) throw new Error("no status");
      status = got;
      choose();
      await askHistory(chosen);
      if (turn++ % MAP_EVERY === 0) await askMap();
      lastGood = new Date();
      failures = 0;
    } catch {
      failures++;
    }
    render();
    if (!document.hidden) setTimeout(poll, POLL_MS);
    else document.addEventListener("visibilitychange", poll, { once: true });
  }

  function choose() {
    const names = status.exports.map((each) => each.name);
    let wanted = null;
    try { wanted = decodeURIComponent(location.hash.slice(2)); } catch { /* not ours */ }
    const name = names.includes(wanted) ? wanted
      : names.includes(chosen) ? chosen
      : (status.exports.find((each) => each.connections) ?? status.exports[0]).name;
    if (name !== chosen) {
      chosen = name;
      samples = map = view = cursor = null;
      count = turn = 0;
    }
  }

  async function askHistory(name) {
    const got = await ask("history.json", { export: name, since: count });
    if (!got || name !== chosen) return;
    if (!samples || got.count < count) samples = {};  // of another server, perhaps
    const fresh = Math.max(0, got.count - count);  // some may have come meanwhile with another answer
    for (const [field, values] of Object.entries(got.samples))
      samples[field] = [...(samples[field] ?? []), ...values.slice(Math.max(0, values.length - fresh))].slice(-SAMPLES);
    count = got.count;
  }

  async function askMap() {
    const name = chosen, wanted = view;
    const got = await ask("map.json", { export: name, cells: shape(wanted).cells,
      ...(wanted && { first: wanted.first, end: wanted.end }) });
    if (name === chosen && wanted === view && got) {
      map = got.blocks ? got : { blocks: 0 };
      if (cursor !== null && map.cells) cursor = Math.min(cursor, map.cells - 1);
    }
  }

  // Plots

  let colours = {};
  function readColours() {
    const style = getComputedStyle(root);
    colours = Object.fromEntries(["ink", "quiet", "grid", "card", "read", "write", "line", "bad", ...KINDS]
      .map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    colours.typical = colours.cached;
    colours.slow = colours.uploading;
  }

  function context(canvas) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const draw = canvas.getContext("2d");
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    draw.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    return [draw, width, height];
  }

  // `scale` has `at(value)`, 0 at the bottom to 1 at the top, and `lines`, [value, label] each
  function plot(canvas, lines, scale, at, nothing) {
    const [draw, width, height] = context(canvas);
    const top = 8, bottom = height - 20, left = LEFT, right = width - RIGHT;
    const x = (i) => right - (SAMPLES - 1 - i) * (right - left) / (SAMPLES - 1);
    const y = (value) => bottom - Math.max(0, Math.min(1, scale.at(value))) * (bottom - top);
    draw.lineWidth = 1;
    draw.textBaseline = "middle";
    draw.textAlign = "right";
    for (const [value, label] of nothing ? [[scale.lines[0][0], ""]] : scale.lines) {
      draw.strokeStyle = colours.grid;
      draw.beginPath();
      draw.moveTo(left, Math.round(y(value)) + .5);
      draw.lineTo(right, Math.round(y(value)) + .5);
      draw.stroke();
      draw.fillStyle = colours.quiet;
      draw.fillText(label, left - 8, y(value));
    }
    draw.textBaseline = "alphabetic";
    draw.textAlign = "center";
    for (let minutes = 0; minutes <= 4; minutes++)
      draw.fillText(minutes ? `−${minutes} min` : "now", left + (right - left) * (4 - minutes) / 4, height - 4);
    for (const [values, colour, filled] of lines) {
      const start = SAMPLES - values.length;
      draw.strokeStyle = draw.fillStyle = colour;
      draw.lineWidth = 1.6;
      draw.lineJoin = "round";
      let from = null;
      const finish = (to) => {
        if (from === null) return;
        draw.beginPath();
        for (let i = from; i <= to; i++) draw.lineTo(x(start + i), y(values[i]));
        draw.stroke();
        if (from === to) {
          draw.beginPath();
          draw.arc(x(start + to), y(values[to]), 1.8, 0, 7);
          draw.fill();
        }
        if (filled && from < to) {
          draw.lineTo(x(start + to), bottom);
          draw.lineTo(x(start + from), bottom);
          draw.globalAlpha = .1;
          draw.fill();
          draw.globalAlpha = 1;
        }
        from = null;
      };
      values.forEach((value, i) => {
        if (value === null) finish(i - 1);
        else from ??= i;
      });
      finish(values.length - 1);
    }
    if (nothing) {
      draw.textAlign = "center";
      draw.fillStyle = colours.quiet;
      draw.font = draw.font.replace("11px", "13px");
      draw.fillText(nothing, (left + right) / 2, (top + bottom) / 2 + 4);
    } else if (at !== null) {
      draw.strokeStyle = colours.quiet;
      draw.lineWidth = 1;
      draw.beginPath();
      draw.moveTo(Math.round(x(at)) + .5, top);
      draw.lineTo(Math.round(x(at)) + .5, bottom);
      draw.stroke();
    }
  }

  function linear(top) {
    const step = 2 ** Math.max(0, Math.ceil(Math.log2(top / 4))), max = top * 1.05;
    const lines = [0, 1, 2, 3, 4].filter((i) => i * step <= max);
    return { at: (v) => v / max, lines: lines.map((i) => [i * step, i ? `${inBytes(i * step)}/s` : "0"]) };
  }
  function logarithmic(least, most) {
    const low = Math.floor(Math.log10(least)), high = Math.max(low + 2, Math.ceil(Math.log10(most)));
    const lines = [];
    const step = high - low > 6 ? 2 : 1;
    for (let i = low; i <= high; i += step) lines.push([10 ** i, inSeconds(10 ** i)]);
    return { at: (v) => (Math.log10(v) - low) / (high - low), lines };
  }

  const looking = { throughput: null, latency: null };  // the sample that somebody points at
  function valueAt(field, at) {
    const values = samples?.[field] ?? [], index = at === null ? values.length - 1 : at - SAMPLES + values.length;
    return values[index] ?? null;
  }
  const pointed = {};
  const ago = (at) => at === null || at === SAMPLES - 1 ? "now" : `${SAMPLES - 1 - at} s ago`;

  function renderPlots() {
    const empty = !samples || !samples.reads?.length;
    const { read_bytes: read = [], written_bytes: written = [] } = samples ?? {};
    const { typical_seconds: typical = [], slow_seconds: slow = [], oldest_seconds: oldest = [] } = samples ?? {};
    $("throughput").dataset.samples = read.length;
    const waiting = oldest.map((v) => v >= WAIT_SECONDS ? v : null), waited = valueAt("oldest_seconds", looking.latency);
    const most = Math.max(0, ...read, ...written), known = [...slow, ...waiting].filter((v) => v !== null);
    const quick = [...typical, ...waiting].filter((v) => v !== null);
    plot($("throughput"), most ? [[read, colours.read, true], [written, colours.write, true]] : [],
      linear(most || 2 ** 20), looking.throughput,
      empty ? "Waiting for the first sample" : most ? "" : "Nothing was read or written lately");
    plot($("latency"), [[typical, colours.typical], [slow, colours.slow], [waiting, colours.bad, true]],
      known.length ? logarithmic(Math.max(1e-5, Math.min(...quick)), Math.max(...known)) : logarithmic(1e-4, 1e-1),
      looking.latency, empty ? "Waiting for the first sample" : known.length ? "" : "No requests lately");
    const rate = (field, at) => empty ? "–" : `${inBytes(valueAt(field, at) ?? 0)}/s`;
    legend("l-throughput", [["read line", "read", rate("read_bytes", looking.throughput)],
      ["write line", "written", rate("written_bytes", looking.throughput)],
      ...(looking.throughput === null ? [] : [["sr", ago(looking.throughput)]])]);
    legend("l-latency", [["typical line", "half within", empty ? "–" : inSeconds(valueAt("typical_seconds", looking.latency))],
      ["slow line", "99 % within", empty ? "–" : inSeconds(valueAt("slow_seconds", looking.latency))],
      ...(waited >= WAIT_SECONDS ? [["waiting line", "waiting for", duration(waited)]] : []),
      ...(looking.latency === null ? [] : [["sr", ago(looking.latency)]])]);
    for (const name of ["throughput", "latency"]) tellPlot(name);
  }

  // What a screen reader says of a plot: when it comes to it and when it is moved, not each second
  function tellPlot(name) {
    const at = looking[name], canvas = $(name);
    if (document.activeElement === canvas && pointed[name] === at) return;
    pointed[name] = at;
    canvas.setAttribute("aria-valuenow", at === null ? 0 : at - SAMPLES + 1);
    canvas.setAttribute("aria-valuetext", `${ago(at)}: ${$(`l-${name}`).textContent}`);
  }

  for (const name of ["throughput", "latency"]) {
    const canvas = $(name);
    const look = (at) => {
      looking[name] = at === null ? null : Math.max(0, Math.min(SAMPLES - 1, at));
      if (samples) renderPlots();
    };
    canvas.addEventListener("pointermove", (event) => {
      const width = canvas.clientWidth - RIGHT - LEFT;
      look(Math.round((event.offsetX - LEFT) / width * (SAMPLES - 1)));
    });
    canvas.addEventListener("pointerleave", () => look(null));
    canvas.addEventListener("blur", () => look(null));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -5, ArrowRight: 5 }[event.key];
      if (step) look((looking[name] ?? SAMPLES - 1) + step);
      else if (event.key === "Escape") look(null);
      else return;
      event.preventDefault();
    });
  }

  // The map

  function shape(wanted) {
    const width = $("map").clientWidth || 320;
    const blocks = wanted ? wanted.end - wanted.first : map?.blocks || Infinity;
    for (const size of [20, 16, 13, 11, 9]) {
      const columns = Math.max(1, Math.floor((width + 2) / size));
      const rows = size === 9 ? Math.min(26, Math.floor(CELLS_MAX / columns)) : Math.floor(220 / size);
      if (columns * rows >= blocks || size === 9)
        return { size, columns, cells: squares(blocks, columns * rows) };
    }
  }
  // A square stands for a power of two of blocks, so that it begins where people look for things
  function squares(blocks, most) {
    if (blocks === Infinity) return most;
    return Math.ceil(blocks / 2 ** Math.max(0, Math.ceil(Math.log2(blocks / most))));
  }
  const cellBegin = (i) => map.first + Math.floor(i * (map.end - map.first) / map.cells);

  function blend(from, to, share) {
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    return `rgb(${[0, 1, 2].map((i) => Math.round(part(from, i) + (part(to, i) - part(from, i)) * share))})`;
  }
  // What is rare is what one looks for, so a little of it shows; its share makes it stronger. What is most urgent
  // covers the rest of what is in memory: mixed, they would have a colour that means nothing
  function cellColour(i) {
    const of = (kind) => map.counts[kind][i], total = cellBegin(i + 1) - cellBegin(i);
    const below = of("absent") + of("unknown") + of("stored");
    const base = below ? blend(of("unknown") > of("absent") ? colours.unknown : colours.absent, colours.stored,
      of("stored") ? .25 + .75 * of("stored") / below : 0) : colours.cached;
    const above = ["uploading", "dirty", "cached"].find(of);
    if (!above) return base;
    return below ? kindOver(base, colours[above], 1 - below / total) : colours[above];
  }
  function kindOver(colour, over, share) {
    const [r, g, b] = colour.startsWith("#") ? [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))
      : colour.match(/\d+/g).map(Number);
    const hex = "#" + [r, g, b].map((v) => v.toString(16).padStart(2, "0")).join("");
    return blend(hex, over, .45 + .55 * Math.sqrt(share));
  }

  function renderMap() {
    const canvas = $("map"), known = map && map.blocks > 0;
    canvas.hidden = map !== null && !known;
    $("map-empty").hidden = map === null || known;
    put("map-empty", "While no client is attached, nothing is known of its blocks.");
    for (const id of ["earlier", "later", "out", "whole"]) $(id).disabled = !known || !view;
    $("in").disabled = !known || map.end - map.first <= 16;
    $("tools").hidden = !known;
    $("window").parentElement.hidden = !known || !view;
    if (!known) {
      put("map-text", map === null ? "Waiting for the map." : "");
      $("map-text").hidden = map !== null;
      legend("l-map", []);
      return;
    }
    $("map-text").hidden = false;
    const { size, columns } = shape(view), cells = map.cells, gap = size > 12 ? 2 : 1;
    const height = Math.ceil(cells / columns) * size;
    if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
    const [draw] = context(canvas);
    for (let i = 0; i < cells; i++) {
      draw.fillStyle = cellColour(i);
      draw.beginPath();
      draw.roundRect(i % columns * size, Math.floor(i / columns) * size, size - gap, size - gap, size > 12 ? 3 : 1.5);
      draw.fill();
    }
    if (cursor !== null) {
      draw.strokeStyle = colours.ink;
      draw.lineWidth = 2;
      draw.strokeRect(cursor % columns * size + 1, Math.floor(cursor / columns) * size + 1, size - gap - 2, size - gap - 2);
    }
    const bar = $("window").style;
    bar.left = `${Math.min(99.5, 100 * map.first / map.blocks)}%`;
    bar.width = `${100 * (map.end - map.first) / map.blocks}%`;
    const total = (kind) => map.counts[kind].reduce((a, b) => a + b, 0);
    legend("l-map", KINDS.map((kind) => [kind, kind === "unknown" ? "not known" : kind, total(kind).toLocaleString("en")]));
    put("map-text", cursor === null ? describeView() : describeCell());
    canvas.setAttribute("aria-label", `Map of blocks. ${describeView()}. ${$("l-map").textContent}`);
  }

  const range = (first, end) => `${end - first === 1 ? "Block" : "Blocks"} ${first.toLocaleString("en")}`
    + (end - first === 1 ? "" : ` to ${(end - 1).toLocaleString("en")}`);
  function describeView() {
    const each = (map.end - map.first) / map.cells;
    const square = each === 1 ? `one of ${inBytes(map.block_size)}`
      : `${Number.isInteger(each) ? "" : "about "}${Math.round(each).toLocaleString("en")} of them, ${inBytes(each * map.block_size)}`;
    return `${range(map.first, map.end)} of ${map.blocks.toLocaleString("en")}; a square is ${square}`;
  }
  function describeCell() {
    const first = cellBegin(cursor), end = cellBegin(cursor + 1);
    const what = KINDS.filter((kind) => map.counts[kind][cursor])
      .map((kind) => `${end - first === 1 ? "" : map.counts[kind][cursor].toLocaleString("en") + " "}${kind === "unknown" ? "not known" : kind}`);
    return `${range(first, end)}, from ${inBytes(first * map.block_size)}: ${what.join(", ")}`;
  }

  function show(first, end) {
    const size = Math.min(map.blocks, Math.max(16, end - first));
    first = Math.max(0, Math.min(map.blocks - size, Math.round(first)));
    view = size >= map.blocks ? null : { first, end: first + size };
    turn = 1;
    askMap().then(renderMap, () => { /* the next poll tells */ });
  }
  const shown = () => view ?? { first: 0, end: map.blocks };  // or will be, once its map is there
  function zoom(factor) {
    if (!map?.blocks) return;
    const { first, end } = shown(), size = Math.ceil((end - first) * factor);
    const middle = cursor === null ? (first + end) / 2 : (cellBegin(cursor) + cellBegin(cursor + 1)) / 2;
    show(Math.floor(middle - size / 2), Math.floor(middle - size / 2) + size);
  }
  function pan(share) {
    if (!map?.blocks) return;
    const { first, end } = shown(), size = end - first;
    const begin = Math.max(0, Math.min(map.blocks - size, first + Math.round(size * share)));
    show(begin, begin + size);
  }
  const whole = () => map?.blocks && show(0, map.blocks);
  $("in").onclick = () => zoom(1 / 4);
  $("out").onclick = () => zoom(4);
  $("earlier").onclick = () => pan(-.5);
  $("later").onclick = () => pan(.5);
  $("whole").onclick = whole;
  $("map").addEventListener("keydown", (event) => {
    if (!map?.blocks || event.ctrlKey || event.metaKey || event.altKey) return;
    const { columns } = shape(view);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const act = { Enter: () => zoom(1 / 4), "+": () => zoom(1 / 4), "=": () => zoom(1 / 4), "-": () => zoom(4),
      Escape: () => zoom(4), PageUp: () => pan(-.5), PageDown: () => pan(.5), Home: whole }[event.key];
    if (step) cursor = cursor === null ? 0 : Math.max(0, Math.min(map.cells - 1, cursor + step));
    else if (act) act();
    else return;
    event.preventDefault();
    renderMap();
  });
  $("map").addEventListener("pointermove", (event) => {
    if (!map?.blocks) return;
    const { size, columns } = shape(view), column = Math.floor(event.offsetX / size);
    const cell = Math.floor(event.offsetY / size) * columns + column;
    cursor = column < columns && cell >= 0 && cell < map.cells ? cell : null;
    renderMap();
  });
  const forget = () => { cursor = null; if (map) renderMap(); };
  $("map").addEventListener("pointerleave", forget);
  $("map").addEventListener("blur", forget);
  $("map").addEventListener("click", () => cursor !== null && zoom(1 / 4));

  // All of it

  function renderFigures() {
    const now = status.exports.map((each) => each.now);
    const sum = (field) => now.reduce((total, each) => total + (each[field] ?? 0), 0);
    const per = ([number, unit]) => [number, `${unit}/s`];
    const slow = now.map((each) => each.slow_seconds).filter((each) => each !== null && each > 0);
    figure("f-read", per(scaled(sum("read_bytes"))));
    figure("f-write", per(scaled(sum("written_bytes"))));
    const requests = sum("reads") + sum("writes") + sum("others");
    const waiting = sum("at_work");
    figure("f-requests", [Math.round(requests).toLocaleString("en"), waiting ? `/s, ${waiting.toLocaleString("en")} at work` : "/s"]);
    figure("f-slow", seconds(slow.length ? Math.max(...slow) : null));
    figure("f-dirty", scaled(status.exports.reduce((total, each) => total + (each.dirty_bytes ?? 0), 0)));
    const store = status.store;
    figure("f-store", store.kind === "none" ? ["–", ""] : store.kind !== "swift" ? ["Folder", ""]
      : isFailing() ? ["Failing", duration(store.trouble_seconds)]
      : ["Swift", store.under_way ? `${store.under_way} under way` : "well"], isFailing() ? "bad" : "");
  }

  function renderList() {
    document.querySelector(".columns").classList.toggle("single", status.exports.length < 2);
    const troubled = status.exports.filter((each) => isStuck(each) || ["kept", "suspended", "lost"].includes(each.state));
    put("n-exports", `(${status.exports.length}${troubled.length ? `, ${troubled.length} in trouble` : ""})`);
    const list = $("list");
    while (list.children.length > status.exports.length) list.lastChild.remove();
    status.exports.forEach((each, i) => {
      let item = list.children[i];
      if (!item) {
        item = make("li");
        const link = make("a"), bold = make("b");
        bold.append(make("i"), make("span"));
        link.append(bold, make("small"));
        item.append(link);
        list.append(item);
      }
      const link = item.firstChild, [dot, name] = link.firstChild.children;
      link.href = `#/${encodeURIComponent(each.name)}`;
      if (each.name === chosen) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      const [words, mood] = stateOf(each);
      dot.className = `dot ${mood}`;
      put(name, visible(each.name));
      link.title = visible(each.name);
      put(link.lastChild, each.state !== "attached" ? `${inBytes(each.size_bytes)}, ${words}`
        : isStuck(each) ? `${plural(each.now.at_work, "request")} waiting ${duration(each.now.oldest_seconds)}`
        : `r ${inBytes(each.now.read_bytes)}/s, w ${inBytes(each.now.written_bytes)}/s`);
    });
    if (listed !== chosen) showChosen();
  }

  let listed = null;  // the export that the list was last moved to, should it be longer than its place
  function showChosen() {
    listed = chosen;
    const box = $("list"), link = box.querySelector("[aria-current]");
    const below = link.getBoundingClientRect().bottom - box.getBoundingClientRect().bottom;
    const above = box.getBoundingClientRect().top - link.getBoundingClientRect().top;
    box.scrollTop += Math.max(0, below + 8) - Math.max(0, above + 8);
  }

  function renderExport() {
    const each = status.exports.find((one) => one.name === chosen);
    put("name", visible(each.name));
    pill($("state"), stateOf(each));
    const facts = [inBytes(each.size_bytes)];
    if (each.object_bytes !== null) facts.push(`objects of ${inBytes(each.object_bytes)}`);
    if (each.read_only) facts.push(each.object_bytes === null ? "read-only" : "read-only, takes no lock");
    else if (each.holder) facts.push(`locked as ${visible(each.holder.replace(/@\d+$/, ""))}`);
    if (each.lease_seconds !== null) facts.push(`lock good for ${duration(each.lease_seconds)}`);
    if (each.errors) facts.push(`${plural(each.errors, "request")} failed so far`);
    put("facts", facts.join("\u00a0· "));

    renderCache(each);
    renderClients(each);
  }

  // What a plugin makes has no cache and no objects
  function renderCache(each) {
    const limit = each.cache_limit_bytes;
    for (const id of ["t-cache", "t-map"]) $(id).closest("section").hidden = limit === null;
    if (limit === null) return;
    const share = (bytes) => `${Math.min(100, 100 * bytes / limit)}%`;
    const [dirty, cached] = $("bar").children, mark = $("bar").lastChild;
    dirty.style.width = share(each.dirty_bytes);
    cached.style.width = share(each.cached_bytes - each.dirty_bytes);
    mark.style.left = share(each.dirty_limit_bytes);
    mark.hidden = !each.dirty_limit_bytes;
    legend("l-cache", [["dirty", "not stored yet", inBytes(each.dirty_bytes)],
      ["cached", "as stored", inBytes(each.cached_bytes - each.dirty_bytes)],
      ["free", "free", inBytes(Math.max(0, limit - each.cached_bytes))]]);
    const being = each.uploading_objects ? `; ${plural(each.uploading_objects, "object")} being stored` : "";
    put("cache-text", each.state === "idle" ? `${inBytes(limit)} at most, once a client is attached.`
      : `${inBytes(each.cached_bytes)} of ${inBytes(limit)}; writers wait when ${inBytes(each.dirty_limit_bytes)} are not stored${being}.`);
    $("bar").setAttribute("aria-label", `Cache: ${$("cache-text").textContent} ${$("l-cache").textContent}`);
  }

  function renderClients(each) {
    const clients = status.clients.filter((client) => client.export === chosen);
    $("clients-table").hidden = !clients.length;
    $("no-clients").hidden = clients.length > 0;
    put("no-clients", each.connections ? "Too many connections to show them all." : "No client is attached.");
    $("clients").replaceChildren(...clients.map((client) => {
      const row = make("tr");
      row.append(make("td", "", visible(client.client)), make("td", "", duration(client.seconds)),
        make("td", "", client.oldest_seconds >= WAIT_SECONDS
          ? `${client.at_work} for ${duration(client.oldest_seconds)}` : plural(client.at_work, "request")));
      return row;
    }));
  }

  // What the trouble does, as far as one can see it from here
  function harm() {
    const stuck = status.exports.filter(isStuck), parts = [];
    const requests = stuck.reduce((total, each) => total + each.now.at_work, 0);
    const dirty = status.exports.reduce((total, each) => total + (each.dirty_bytes ?? 0), 0);
    const leases = status.exports.map((each) => each.lease_seconds).filter((lease) => lease > 0);
    if (stuck.length) parts.push(`${plural(requests, "request")} of ${plural(stuck.length, "export")} waiting, `
      + `the oldest for ${duration(Math.max(...stuck.map((each) => each.now.oldest_seconds)))}`);
    if (dirty) parts.push(`${inBytes(dirty)} in memory only`);
    if (isFailing() && Math.min(...leases) < Infinity) parts.push(`locks hold for ${duration(Math.min(...leases))} more`);
    return parts.join("\u00a0· ");
  }

  // For a screen reader: what is wrong, but not each second for how long already
  let alarmed = "";
  function alarm(text) {
    const kind = text.replace(/(\d+ (d|h|min|s)\b ?)+/g, "");
    if (kind !== alarmed) put("alarm", text);
    alarmed = kind;
  }

  function renderHealth() {
    const gone = failures > 1, trouble = status?.trouble ?? [];
    root.classList.toggle("stale", gone);
    let text = trouble.map(visible).join("\n");
    let bad = status?.exports.some((each) => stateOf(each)[1] === "bad");
    const stuck = status?.exports.some(isStuck), lost = status?.exports.some((each) => each.state === "lost");
    if (status?.is_stopping) text = ["The server is shutting down.", text].filter(Boolean).join("\n");
    if (gone) {
      bad = true;
      text = status ? `The server does not answer. What you see is from ${lastGood.toLocaleTimeString()}.`
        : "The server does not answer.";
    }
    $("banner").hidden = !text;
    $("banner").classList.toggle("bad", Boolean(bad));
    put("trouble", text);
    alarm(text);
    put("harm", gone || !text ? "" : harm());
    if (!status && !gone) return;
    pill($("health"), gone ? ["no contact", "bad"] : status.is_stopping ? ["shutting down", "warn"]
      : lost ? ["failed", "bad"] : trouble.length ? ["in trouble", bad ? "bad" : "warn"]
      : stuck ? ["requests wait", "warn"] : ["all well", "good"]);
  }

  function render() {
    renderHealth();
    if (!status) return;
    $("main").removeAttribute("aria-busy");
    put("about", `${status.version} · up ${duration(status.uptime_seconds)} · ${plural(status.connections, "connection")}`);
    put("updated", `${lastGood ? lastGood.toLocaleTimeString() : ""} · the event loop was at most ${inSeconds(status.loop_lag_seconds)} late`);
    document.title = `${status.trouble.length ? "! " : ""}swiftnbd: ${visible(chosen)}`;
    renderFigures();
    renderList();
    renderExport();
    renderPlots();
    renderMap();
  }

  // Colours

  const THEMES = ["auto", "light", "dark"];
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  function setTheme(theme) {
    root.dataset.theme = theme !== "auto" ? theme : prefersDark.matches ? "dark" : "light";
    put("theme", `Theme: ${theme}`);
    try { localStorage.setItem("swiftnbd-theme", theme); } catch { /* not allowed: for now only */ }
    readColours();
    if (status) render();
  }
  let theme = "auto";
  try { theme = localStorage.getItem("swiftnbd-theme") ?? "auto"; } catch { /* as above */ }
  if (!THEMES.includes(theme)) theme = "auto";
  $("theme").onclick = () => { theme = THEMES[(THEMES.indexOf(theme) + 1) % 3]; setTheme(theme); };
  prefersDark.addEventListener("change", () => setTheme(theme));

  addEventListener("hashchange", () => {
    if (!status || !location.hash.startsWith("#/")) return;
    choose();
    render();
    turn = 0;
    Promise.all([askHistory(chosen), askMap()]).then(render, () => { /* the next poll tells */ });
  });
  addEventListener("resize", () => { turn = 0; if (status) render(); });
  setTheme(theme);
  poll();
})();
