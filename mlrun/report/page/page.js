"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SPACE = document.getElementById("shapes").namespaceURI; // the name of SVG, without writing it as an address
  const AXES = {
    flops: { at: 4, name: "training FLOPs", form: si },
    seconds: { at: 5, name: "training time", form: time },
    tokens: { at: 3, name: "tokens", form: si },
  };
  const STAGE = 0, LEVEL = 1, STEP = 2, LOSS = 6;
  const THEME = "mlrun-report-theme"; // where a browser keeps the choice of colours
  const REACH = 40; // pixels within which a point is read out
  const DRAG = 8; // pixels from which a drag is a zoom

  // Elements

  function el(name, attributes = {}, text = null) {
    return filled(document.createElement(name), attributes, text);
  }
  function shape(name, attributes = {}, text = null) {
    return filled(document.createElementNS(SPACE, name), attributes, text);
  }
  function filled(node, attributes, text) {
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  }

  // Numbers

  function digits(value, places) {
    return String(Number(value.toPrecision(Math.min(places, 12)))).replace("-", "\u2212");
  }
  function si(value, places = 3) {
    for (const [power, prefix] of [[21, "Z"], [18, "E"], [15, "P"], [12, "T"], [9, "G"], [6, "M"], [3, "k"]]) {
      if (Math.abs(value) >= 10 ** power) return digits(value / 10 ** power, places) + prefix;
    }
    return digits(value, places);
  }
  function time(value, places = 3, largest = value) {
    for (const [size, unit] of [[3600, " h"], [60, " min"]]) {
      if (largest >= size) return digits(value / size, places) + unit;
    }
    return digits(value, places) + " s";
  }
  function plain(value, places = 3) {
    return digits(value, places);
  }
  function loss(value) {
    return value === null ? "not finite" : value.toFixed(4);
  }

  // Axes

  function evenly(low, high, count) {
    const least = (high - low) / count, power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= least * 0.999);
    const ticks = [];
    for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(k * step);
    return ticks;
  }
  function byDecade(low, high, count) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const part of [1, 2, 3, 4, 5, 6, 8]) ticks.push(part * 10 ** power);
    }
    const inside = ticks.filter((tick) => tick >= low && tick <= high);
    return inside.length < 3 ? evenly(low, high, count) : inside;
  }
  function places(ticks) {
    const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
    const largest = Math.max(...ticks.map(Math.abs), 1e-12);
    return Math.max(2, Math.ceil(Math.log10(largest / step)) + 1);
  }

  // One plot: axes, read-out, zoom. `spec()` gives what is drawn now.

  function plot(box, spec) {
    const canvas = el("div", { class: "canvas" });
    const tip = el("div", { class: "tip", role: "status", hidden: "" });
    const reset = el("button", { type: "button", class: "reset", hidden: "" }, "whole range");
    let zoom = null, start = null, frame = null, told = null; // the last is which point the arrow keys have come to
    const svg = shape("svg", { class: "plot", role: "img", tabindex: 0 });
    canvas.append(svg, tip);
    box.insertBefore(canvas, box.querySelector("figcaption"));
    box.querySelector(".controls").append(reset);

    function draw() {
      const now = spec(), width = Math.max(240, canvas.clientWidth), height = width < 520 ? 300 : 400;
      const [x0, x1, y0, y1] = zoom || now.view, ys = evenly(y0, y1, 5);
      const longest = Math.max(...ys.map((y) => digits(y, places(ys)).length));
      const margin = { left: 30 + 7 * Math.max(3, longest), right: 14, top: 10 + (now.top || 0), bottom: 42 };
      const across = now.log ? Math.log : (x) => x, back = now.log ? Math.exp : (x) => x;
      const wide = width - margin.left - margin.right, high = height - margin.top - margin.bottom;
      const X = (x) => margin.left + (wide * (across(x) - across(x0))) / (across(x1) - across(x0));
      const Y = (y) => margin.top + (high * (y1 - y)) / (y1 - y0);
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);
      svg.setAttribute("aria-label", now.label);
      axes(now, [x0, x1, y0, y1], X, Y, { width, height, margin });
      now.draw(clipped(margin.left, margin.top, wide, high), X, Y);
      if (now.above) now.above(clipped(margin.left, 0, wide, margin.top), X, margin.top);
      const ring = shape("circle", { r: 6, class: "curve", "stroke-width": 2, visibility: "hidden" });
      const band = shape("rect", { class: "band", visibility: "hidden" });
      svg.append(ring, band);
      const from = (px, py) => [
        back(across(x0) + ((px - margin.left) / wide) * (across(x1) - across(x0))),
        y1 - ((py - margin.top) / high) * (y1 - y0),
      ];
      frame = { now, X, Y, from, ring, band, width, margin, wide, high };
      reset.hidden = zoom === null;
      tip.hidden = true;
    }

    function clipped(x, y, width, height) {
      const id = `clip-${plot.count++}`, clip = shape("clipPath", { id });
      clip.append(shape("rect", { x, y, width, height }));
      const inner = shape("g", { "clip-path": `url(#${id})` });
      svg.append(clip, inner);
      return inner;
    }

    function axes(now, [x0, x1, y0, y1], X, Y, { width, height, margin }) {
      const low = height - margin.bottom;
      const ys = evenly(y0, y1, 5), count = Math.max(3, Math.floor(width / 130));
      for (const y of ys) {
        svg.append(shape("line", { x1: margin.left, x2: width - margin.right, y1: Y(y), y2: Y(y), class: "grid" }));
        svg.append(shape("text", { x: margin.left - 6, y: Y(y) + 4, "text-anchor": "end" }, digits(y, places(ys))));
      }
      const tried = (now.ticks || []).filter((x) => x >= x0 && x <= x1);
      const xs = tried.length ? tried : now.log ? byDecade(x0, x1, count) : evenly(x0, x1, count);
      let last = -Infinity;
      for (const x of xs) {
        if (X(x) - last < (tried.length ? 40 : 58) || X(x) > width - 22) continue;
        last = X(x);
        svg.append(shape("line", { x1: last, x2: last, y1: margin.top, y2: low, class: "grid" }));
        svg.append(shape("text", { x: last, y: low + 16, "text-anchor": "middle" }, now.form(x, now.log ? 3 : places(xs), x1)));
      }
      const middle = (margin.left + width - margin.right) / 2, across = (margin.top + low) / 2;
      svg.append(shape("text", { x: middle, y: height - 6, "text-anchor": "middle" }, now.xname));
      const turned = `rotate(-90 12 ${across})`;
      svg.append(shape("text", { x: 12, y: across, "text-anchor": "middle", transform: turned }, now.yname));
    }

    function place(event) {
      const box = svg.getBoundingClientRect(), scale = frame.width / box.width;
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    }
    function read(px, py) {
      let best = null, nearest = REACH;
      for (const point of frame.now.points()) {
        if (point.y === null) continue;
        const far = Math.hypot(frame.X(point.x) - px, frame.Y(point.y) - py);
        if (far < nearest) [best, nearest] = [point, far];
      }
      tell(best);
    }
    function tell(best) {
      tip.hidden = best === null;
      frame.ring.setAttribute("visibility", best === null ? "hidden" : "visible");
      if (best === null) return;
      const [x, y] = [frame.X(best.x), frame.Y(best.y)];
      frame.ring.setAttribute("cx", x);
      frame.ring.setAttribute("cy", y);
      frame.ring.setAttribute("class", `curve s${best.colour}`);
      tip.textContent = best.text();
      const right = x > frame.width / 2;
      tip.style.left = right ? "auto" : `${x + 14}px`;
      tip.style.right = right ? `${frame.width - x + 14}px` : "auto";
      tip.style.top = `${Math.max(0, y - 30)}px`;
    }
    function corners([px, py], touch) {
      const { margin, wide, high } = frame;
      const inside = (v, low, size) => Math.min(Math.max(v, low), low + size);
      const xs = [start[0], px].map((x) => inside(x, margin.left, wide)).sort((a, b) => a - b);
      const ys = [start[1], py].map((y) => inside(y, margin.top, high)).sort((a, b) => a - b);
      const flat = touch || ys[1] - ys[0] < 3 * DRAG; // also one outside the plot, whose ends come to the same edge
      return [...xs, ...(flat ? [margin.top, margin.top + high] : ys)];
    }
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = place(event);
      if (event.isTrusted) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (start === null) return read(...at);
      const [left, right, top, low] = corners(at, event.pointerType === "touch");
      filled(frame.band, { x: left, y: top, width: right - left, height: low - top, visibility: "visible" }, null);
    });
    svg.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const at = place(event), [left, right, top, low] = corners(at, event.pointerType === "touch");
      start = null;
      frame.band.setAttribute("visibility", "hidden");
      if (right - left < DRAG) return read(...at);
      const [x0, y1] = frame.from(left, top), [x1, y0] = frame.from(right, low);
      zoom = [x0, x1, y0, y1];
      draw();
    });
    svg.addEventListener("pointercancel", () => { start = null; frame.band.setAttribute("visibility", "hidden"); });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; frame.ring.setAttribute("visibility", "hidden"); });
    const whole = () => { zoom = null; draw(); };
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") return whole();
      if (step === undefined) return;
      event.preventDefault();
      const { X, Y, margin, wide, high } = frame, within = (at, low, size) => at >= low - 1 && at <= low + size + 1;
      const seen = ({ x, y }) => y !== null && within(X(x), margin.left, wide) && within(Y(y), margin.top, high);
      const points = [...frame.now.points()].filter(seen);
      if (!points.length) return;
      told = told === null ? 0 : (told + step + points.length) % points.length;
      tell(points[told]);
    });
    svg.addEventListener("blur", () => tell(null));
    svg.addEventListener("dblclick", whole);
    reset.addEventListener("click", whole);
    window.addEventListener("resize", draw);
    draw();
    return { draw, whole };
  }
  plot.count = 0;

  function choice(label, names, chosen, change) {
    const group = el("div", { class: "switch", role: "group", "aria-label": label });
    for (const [value, name] of names) {
      const button = el("button", { type: "button", "data-value": value, "aria-pressed": value === chosen }, name);
      button.addEventListener("click", () => {
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
        change(value);
      });
      group.append(button);
    }
    return group;
  }
  function legend(entries, hidden, change) {
    const group = el("div", { class: "legend", role: "group", "aria-label": "what is drawn" });
    entries.forEach((entry, index) => {
      const kind = `s${entry.colour}${entry.dashed ? " dashed" : ""}`;
      const button = el("button", { type: "button", class: kind, "aria-pressed": true });
      button.append(el("i"), el("span", {}, entry.name));
      button.addEventListener("click", () => {
        if (!hidden.delete(index)) hidden.add(index);
        button.setAttribute("aria-pressed", !hidden.has(index));
        change();
      });
      group.append(button);
    });
    return group;
  }

  // Shapes

  function line(into, points, X, Y, attributes) {
    let path = "", pen = "M";
    for (const [x, y] of points) {
      if (y === null) { pen = "M"; continue; } // a loss that is not finite breaks the line
      path += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
      pen = "L";
    }
    if (path) into.append(shape("path", { d: path, class: "curve", ...attributes }));
  }
  function diamond(into, x, y, size = 5) {
    into.append(shape("path", { d: `M${x} ${y - size}l${size} ${size}l${-size} ${size}l${-size} ${-size}z`, class: "open" }));
  }
  function triangle(into, x, y, down) {
    const tall = down ? 8 : -8;
    into.append(shape("path", { d: `M${x - 5} ${y - tall / 2}h10l-5 ${tall}z`, class: "mark" }));
  }
  // Draws L* and returns its name, which goes on top of whatever is drawn later, where it hides the fewest points.
  function targetLine(into, target, X, Y, [x0, x1, y0, y1], points) {
    if (target === null) return [];
    const y = Y(target), said = `L* = ${target.toFixed(3)}`, wide = 7 * said.length;
    into.append(shape("line", { x1: X(x0), x2: X(x1), y1: y, y2: y, class: "target" }));
    const places = [false, true].flatMap((end) => [14, -5].map((off) => ({ x: end ? X(x1) - 5 - wide : X(x0) + 5, y: y + off, end })));
    const inside = places.filter((at) => at.y < Y(y0) && at.y > Y(y1) + 8);
    const hits = (at) => points.filter(([px, py]) => {
      return px > at.x - 8 && px < at.x + wide + 8 && py > at.y - 18 && py < at.y + 10;
    }).length;
    const best = (inside.length ? inside : places).reduce((a, b) => (hits(b) < hits(a) ? b : a)); // the first of equals
    const anchor = best.end ? { x: best.x + wide, "text-anchor": "end" } : { x: best.x };
    return [shape("text", { ...anchor, y: best.y, class: "on" }, said)];
  }

  // Held-out loss against what was spent

  function stages(points) {
    const parts = [];
    for (const point of points) {
      if (!parts.length || parts.at(-1)[0][STAGE] !== point[STAGE]) parts.push([]);
      parts.at(-1).push(point);
    }
    return parts;
  }
  function curves(box, group) {
    const hidden = new Set();
    let axis = "flops";
    const shown = () => group.curves.filter((_, index) => !hidden.has(index));
    const seeds = () => shown().flatMap((curve) => curve.seeds.map((seed) => ({ curve, seed })));
    const spec = () => {
      const { at, name, form } = AXES[axis];
      const largest = Math.max(1e-9, ...group.curves.flatMap((c) => c.seeds.flatMap((s) => s.points.map((p) => p[at]))));
      const view = [0, largest * 1.02, ...group.limits];
      return { label: `held-out loss against ${name}`, view, form, xname: name, yname: "validation loss (nats)",
        top: 9 * shown().length, points, above: strips, draw: (...given) => drawCurves(...given, view) };
    };
    function strips(into, X, low) {
      shown().forEach((curve, index) => strip(into, curve, X, AXES[axis].at, low - 9 * (shown().length - index)));
    }
    function drawCurves(into, X, Y, view) {
      const at = AXES[axis].at;
      const ends = seeds().flatMap(({ seed }) => [...seed.points, ...seed.endings]).filter((p) => p[LOSS] !== null);
      const named = targetLine(into, group.target, X, Y, view, ends.map((p) => [X(p[at]), Y(p[LOSS])]));
      for (const { curve, seed } of seeds().reverse()) {
        const own = shape("g", { class: `s${curve.colour}` });
        into.append(own);
        trunk(own, stages(seed.points), X, Y, at);
        const ends = seed.endings.map((e) => [e[at], e[LOSS]]);
        line(own, ends, X, Y, { "stroke-dasharray": "2 2", "stroke-width": 1 });
        for (const [x, y] of ends) if (y !== null) diamond(own, X(x), Y(y));
      }
      for (const curve of shown()) {
        const own = shape("g", { class: `s${curve.colour}` });
        into.append(own);
        const x = curve.crossing[axis];
        if (x != null) own.append(shape("circle", { cx: X(x), cy: Y(group.target), r: 5, class: "mark" }));
      }
      into.append(...named);
    }
    function trunk(into, parts, X, Y, at) {
      parts.forEach((part, index) => {
        const level = part[0][LEVEL], dashes = level === 1 ? {} : { "stroke-dasharray": level === 2 ? "6 3" : "2 2" };
        line(into, part.map((p) => [p[at], p[LOSS]]), X, Y, { "stroke-width": level === 1 ? 1.8 : 1.3, ...dashes });
        if (!index) return;
        const before = parts[index - 1].at(-1), after = part[0];
        line(into, [before, after].map((p) => [p[at], p[LOSS]]), X, Y, { "stroke-dasharray": "1 2", "stroke-width": 1 });
        if (after[LOSS] !== null) triangle(into, X(after[at]), Y(after[LOSS]), level > before[LEVEL]);
      });
    }
    function strip(into, curve, X, at, y) {
      let before = 0;
      for (const part of stages(curve.seeds[0].points)) {
        const end = part.at(-1)[at], level = part[0][LEVEL];
        const width = Math.max(0, X(end) - X(before) - 1);
        const box = shape("rect", { x: X(before), y, width, height: 6, class: `strip s${curve.colour}`, opacity: 1 / level ** 1.3 });
        box.append(shape("title", {}, `${curve.name}: stage ${part[0][STAGE] + 1}, level ${level}`));
        into.append(box);
        before = end;
      }
    }
    function* points() {
      const { at } = AXES[axis];
      for (const { curve, seed } of seeds()) {
        const first = `${curve.name}\nseed ${seed.seed}`;
        const cost = (p) => `step ${p[STEP]}, ${si(p[3], 4)} tokens\n${si(p[4], 4)}FLOPs, ${time(p[5], 4)}\nloss ${loss(p[LOSS])}`;
        for (const p of seed.points) {
          const where = `stage ${p[STAGE] + 1}, level ${p[LEVEL]}`;
          yield { x: p[at], y: p[LOSS], colour: curve.colour, text: () => `${first}, ${where}\n${cost(p)}` };
        }
        for (const e of seed.endings) {
          const where = `annealed ending at ${plain(100 * e[STAGE])}% of the budget`;
          yield { x: e[at], y: e[LOSS], colour: curve.colour, text: () => `${first}, ${where}\n${cost(e)}` };
        }
      }
    }
    const controls = el("div", { class: "controls" });
    let drawn = null;
    const names = [["flops", "FLOPs"], ["seconds", "time"], ["tokens", "tokens"]];
    controls.append(choice("what it is drawn against", names, axis, (value) => { axis = value; drawn.whole(); }));
    box.prepend(controls, legend(group.curves, hidden, () => drawn.draw()));
    drawn = plot(box, spec);
  }

  // Annealed losses, and the saving between the two sides

  function annealed(box, group) {
    const { sides, arrows } = group.annealed, hidden = new Set();
    const shown = () => sides.filter((_, index) => !hidden.has(index));
    const all = sides.flatMap((side) => side.points);
    const xs = all.map((p) => p[0]), ys = all.flatMap(([, y, sd]) => [y - sd, y + sd]);
    const size = Math.max(Math.max(...ys) - Math.min(...ys), 0.01), apart = 0.09 * size;
    const low = Math.min(...ys, group.target);
    const view = [Math.min(...xs) / 1.15, Math.max(...xs) * 1.15,
      low - 0.06 * size - apart * Math.max(0, arrows.length - 1), Math.max(...ys) + 0.08 * size];
    function draw(into, X, Y) {
      const at = shown().flatMap((side) => side.points.map(([x, y]) => [X(x), Y(y)]));
      const named = targetLine(into, group.target, X, Y, view, at);
      for (const side of shown().reverse()) {
        const own = shape("g", { class: `s${side.colour}` });
        into.append(own);
        line(own, side.points, X, Y, { "stroke-width": 1.8, ...(side.dashed && { "stroke-dasharray": "6 4" }) });
        for (const [x, y, sd] of side.points) {
          if (sd > 0) own.append(shape("line", { x1: X(x), x2: X(x), y1: Y(y - sd), y2: Y(y + sd), class: "curve" }));
          diamond(own, X(x), Y(y));
        }
      }
      const kept = arrows.filter((arrow) => shown().some((side) => side.colour === arrow.colour));
      kept.forEach((arrow, index) => saving(into, arrow, index ? low - index * apart : group.target, X, Y));
      into.append(...named);
    }
    function saving(into, arrow, height, X, Y) {
      const own = shape("g", { class: `s${arrow.colour}` });
      into.append(own);
      const [from, to, y] = [X(arrow.baseline), X(arrow.cost), Y(height)];
      for (const [x, colour] of [[from, 0], [to, arrow.colour]]) {
        const side = shape("g", { class: `s${colour}` });
        side.append(shape("line", { x1: x, x2: x, y1: Y(group.target), y2: y, class: "curve", opacity: 0.6 }));
        side.append(shape("circle", { cx: x, cy: Y(group.target), r: 5, class: "mark" }));
        own.append(side);
      }
      const head = from > to ? 9 : -9;
      own.append(shape("line", { x1: from, x2: to + head, y1: y, y2: y, class: "curve", "stroke-width": 2.2 }));
      own.append(shape("path", { d: `M${to + (head * 2) / 3} ${y}l${head} -5v10z`, class: "mark" }));
      own.append(shape("text", { x: (from + to) / 2, y: y - 7, "text-anchor": "middle", class: "said" }, arrow.said));
    }
    function* points() {
      for (const side of shown()) {
        for (const [x, y, sd] of side.points) {
          const share = plain((100 * x) / group.budget), off = sd > 0 ? ` \u00b1 ${sd.toFixed(4)}` : "";
          const text = () => `${side.name}\n${si(x, 4)}FLOPs (${share}% of the budget)\nannealed loss ${loss(y)}${off}`;
          yield { x, y, colour: side.colour, text };
        }
      }
    }
    let drawn = null;
    box.prepend(el("div", { class: "controls" }), legend(sides, hidden, () => drawn.draw()));
    drawn = plot(box, () => ({ label: "annealed loss against FLOPs", view, log: true, form: si, points, draw,
      xname: "training FLOPs of a fully annealed run", yname: "annealed loss (nats)" }));
  }

  // Final loss at each learning rate

  function rates(box, group) {
    const hidden = new Set(), shown = () => group.rates.filter((_, index) => !hidden.has(index));
    const all = group.rates.flatMap((method) => method.points);
    const xs = all.map((p) => p[0]), ys = all.flatMap((p) => p[2]);
    const size = Math.max(Math.max(...ys) - Math.min(...ys), 0.01);
    const view = [Math.min(...xs) / 1.3, Math.max(...xs) * 1.3, Math.min(...ys) - 0.08 * size, Math.max(...ys) + 0.08 * size];
    function draw(into, X, Y) {
      for (const method of shown().reverse()) {
        const own = shape("g", { class: `s${method.colour}` });
        into.append(own);
        line(own, method.points, X, Y, { "stroke-width": 1.6 });
        for (const [x, , values] of method.points) {
          for (const y of values) own.append(shape("circle", { cx: X(x), cy: Y(y), r: 4, class: "mark" }));
        }
      }
    }
    function* points() {
      for (const method of shown()) {
        for (const [x, mean, values] of method.points) {
          const text = () => `${method.name}\nrate ${plain(x)}, mean loss ${loss(mean)}\nseeds: ${values.map(loss).join(", ")}`;
          yield { x, y: mean, colour: method.colour, text };
        }
      }
    }
    let drawn = null;
    box.prepend(el("div", { class: "controls" }), legend(group.rates, hidden, () => drawn.draw()));
    drawn = plot(box, () => ({ label: "final loss against the learning rate", view, log: true, form: plain, points, draw,
      ticks: [...new Set(xs)].sort((a, b) => a - b), xname: "learning rate", yname: "final loss (nats)" }));
  }

  // Lines over FLOPs: how alike copies are, and what is known of each layer

  function lines(box, controls, now) {
    const hidden = new Set();
    const shown = () => now().lines.filter((_, index) => !hidden.has(index));
    let names = null, drawn = null;
    function spec() {
      const { moved, yname } = now(), all = now().lines.flatMap((one) => one.points), ys = all.map((p) => p[1]).filter((y) => y !== null);
      const [low, high] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1], size = Math.max(high - low, 1e-3 * Math.abs(high), 1e-9);
      const view = [0, Math.max(1e-9, ...all.map((p) => p[0])) * 1.02, low - 0.06 * size, high + 0.08 * size];
      function draw(into, X, Y) {
        for (const x of moved) into.append(shape("line", { x1: X(x), x2: X(x), y1: Y(view[3]), y2: Y(view[2]), class: "target moved" }));
        for (const one of shown()) {
          const own = shape("g", { class: `s${one.colour}` });
          into.append(own);
          line(own, one.points, X, Y, { "stroke-width": 1.6, ...(one.dashed && { "stroke-dasharray": "6 4" }) });
          for (const [x, y] of one.points) if (y !== null) own.append(shape("circle", { cx: X(x), cy: Y(y), r: 2.5, class: "mark" }));
        }
      }
      function* points() {
        for (const one of shown()) {
          for (const [x, y] of one.points) yield { x, y, colour: one.colour, text: () => `${one.name}\n${si(x, 4)}FLOPs\n${digits(y, 4)}` };
        }
      }
      return { label: `${yname} against FLOPs`, view, form: si, xname: "training FLOPs", yname, points, draw };
    }
    function named() {
      const fresh = legend(now().lines, hidden, () => drawn.draw());
      if (names === null) box.prepend(controls, fresh);
      else names.replaceWith(fresh);
      names = fresh;
    }
    named();
    drawn = plot(box, spec);
    return () => { hidden.clear(); named(); drawn.whole(); };
  }
  function symmetry(box, group) {
    const now = { lines: group.symmetry, moved: [], yname: "mean cosine of copies" };
    lines(box, el("div", { class: "controls" }), () => now);
  }
  function health(box, group) {
    const names = group.quantities;
    let quantity = "gradient", run = 0, change = () => {};
    const now = () => {
      const { moved, quantities } = group.health[run];
      return { moved, yname: names[quantity], lines: quantities[quantity].map((one, index) => ({ ...one, colour: index % 9, dashed: index % 18 > 8 })) };
    };
    const controls = el("div", { class: "controls" }), set = (act) => (value) => { act(value); change(); };
    controls.append(choice("quantity", Object.entries(names), quantity, set((value) => { quantity = value; })));
    if (group.health.length > 1) {
      const runs = group.health.map((one, index) => [String(index), one.name]);
      controls.append(choice("run", runs, "0", set((value) => { run = Number(value); })));
    }
    change = lines(box, controls, now);
  }

  // Heat maps: cells come as text; here they get a colour, and one of two values

  function map(box) {
    const cells = [...box.querySelectorAll("td[data-loss]")];
    function show(measure) {
      const known = cells.filter((cell) => cell.dataset[measure] !== "").map((cell) => Number(cell.dataset[measure]));
      const low = Math.min(...known), high = Math.max(...known), far = Math.max(...known.map(Math.abs), 1e-9);
      for (const cell of cells) {
        const text = cell.dataset[measure], value = Number(text);
        cell.textContent = cell.dataset[`${measure}Said`];
        const share = measure === "loss" ? (high - value) / Math.max(high - low, 1e-9) : Math.abs(value) / far;
        const colour = measure === "saving" && value < 0 ? "--bad" : "--good";
        cell.style.background = text === "" ? "none" : `rgba(var(${colour}), ${(0.05 + 0.5 * share).toFixed(3)})`;
      }
    }
    const controls = el("div", { class: "controls" });
    controls.append(choice("number in the cells", [["saving", "FLOPs saved"], ["loss", "final loss"]], "saving", show));
    box.prepend(controls);
    show("saving");
  }

  // What scrolls can be reached by the keyboard

  function scrollers() {
    for (const box of document.querySelectorAll(".wide")) {
      if (box.scrollWidth <= box.clientWidth) box.removeAttribute("tabindex");
      else filled(box, { tabindex: 0, role: "region", "aria-label": "a table that scrolls" }, null);
    }
  }

  // Light and dark

  function theme() {
    const root = document.documentElement, buttons = [...document.querySelectorAll("#theme button")];
    function set(value) {
      if (value === "auto") root.removeAttribute("data-theme");
      else root.setAttribute("data-theme", value);
      for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.value === value);
    }
    for (const button of buttons) {
      button.addEventListener("click", () => {
        set(button.dataset.value);
        kept((store) => store.setItem(THEME, button.dataset.value));
      });
    }
    const chosen = kept((store) => store.getItem(THEME));
    if (buttons.some((button) => button.dataset.value === chosen)) set(chosen);
  }
  function kept(act) { // a watched page reads itself again; some browsers keep nothing for files
    try { return act(window.localStorage); } catch { return null; }
  }

  theme();
  const kinds = { curves, annealed, rates, symmetry, health, map };
  for (const box of document.querySelectorAll("figure[data-kind]")) {
    kinds[box.dataset.kind](box, data.groups[box.dataset.group]);
  }
  scrollers();
  window.addEventListener("resize", scrollers);
  document.addEventListener("toggle", scrollers, true); // a table in what is unfolded has no width before
})();
