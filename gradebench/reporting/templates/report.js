"use strict";
// What the report's script adds to a page that is whole without it: sorting and filtering tables, numbers under the pointer,
// following an estimator or a family through all figures, a scatter of any two columns, and copies of figures and numbers.
// Everything comes from the page, and goes back into it as text.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function make(tag, attributes = {}, ...children) {
    const drawn = ["svg", "g", "line", "path", "text", "title"].includes(tag);
    const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function button(words, action) {
    const element = make("button", { type: "button" }, words);
    element.addEventListener("click", () => action(element));
    return element;
  }

  // --- sorting and filtering ------------------------------------------------------------------------------------

  /** The number behind a cell, or in its text up to the first space; NaN where it has none. */
  function numberOf(cell) {
    const text = cell.dataset.value ?? cell.textContent.trim().split(" ")[0].replace("%", "");
    return text === "" ? NaN : Number(text);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    if (original.length < 2 || !table.tHead) return;
    all("th", table.tHead).forEach((heading, column) => {
      const words = [...heading.childNodes];
      const press = button("", () => sort(heading, column));
      press.append(...words);
      heading.append(press);
    });

    function sort(heading, column) {
      const numeric = original.some((row) => Number.isFinite(numberOf(row.cells[column])));
      const order = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const next = order[order.indexOf(heading.getAttribute("aria-sort")) + 1] ?? (heading.hasAttribute("aria-sort") ? null : order[0]);
      all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
      table.classList.toggle("resorted", next !== null);
      if (next === null) return body.append(...original);
      heading.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const rows = original.map((row) => [numeric ? numberOf(row.cells[column]) : row.cells[column].textContent.trim(), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b);
        return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b); // none comes last
      });
      body.append(...rows.map(([, row]) => row));
    }
  }

  function filterable(board) {
    const input = make("input", { type: "search", placeholder: "filter: name, family …", "aria-label": "filter the leaderboard" });
    const shown = make("span", { class: "faint", role: "status" });
    const rows = all("tbody tr", board);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = `${row.textContent} ${row.dataset.family}`.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      shown.textContent = words.length ? ` ${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
    board.prepend(input, shown, " ");
  }

  // --- following an estimator or a family -----------------------------------------------------------------------

  const followed = { kind: "", name: "" };
  const bar = make("div", { class: "following-bar", role: "status", hidden: "" });

  function follow(kind, name) {
    const again = followed.kind === kind && followed.name === name;
    Object.assign(followed, again ? { kind: "", name: "" } : { kind, name });
    document.body.classList.toggle("following", followed.kind !== "");
    for (const one of all("[data-family]")) {
      // A family in the legend stays lit for an estimator of it.
      const on = followed.kind === "family" ? one.dataset.family === name : (one.dataset.estimator ?? name) === name;
      one.classList.toggle("on", followed.kind !== "" && on);
    }
    bar.hidden = followed.kind === "";
    bar.replaceChildren(`following ${followed.name} `, button("clear", () => follow(followed.kind, followed.name)));
  }

  function following() {
    const pressed = (target) => {
      const mark = target.closest("[data-family]");
      if (!mark || (mark.tagName === "TR" && !target.closest("td:first-child"))) return;
      if (mark.dataset.estimator === undefined) follow("family", mark.dataset.family);
      else follow("estimator", mark.dataset.estimator);
    };
    document.addEventListener("click", (event) => pressed(event.target));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && followed.kind) follow(followed.kind, followed.name);
      if ((event.key === "Enter" || event.key === " ") && event.target.getAttribute("role") === "button") {
        event.preventDefault();
        pressed(event.target);
      }
    });
    for (const one of all("li[data-family], tr[data-family] > td:first-child")) {
      one.setAttribute("tabindex", "0");
      one.setAttribute("role", "button");
    }
    document.body.append(bar);
  }

  // --- numbers under the pointer --------------------------------------------------------------------------------

  const tip = make("div", { class: "tip", hidden: "" });

  /** Takes over what the browser shows of titles itself, late and small. */
  function titled(root) {
    for (const title of all("g[data-estimator] > title", root)) {
      title.parentNode.dataset.said = title.textContent;
      title.remove();
    }
  }

  function pointing() {
    document.body.append(tip);
    document.addEventListener("pointermove", (event) => {
      const mark = event.target.closest?.("[data-said]");
      tip.hidden = !mark;
      if (!mark) return;
      tip.textContent = mark.dataset.said;
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      const below = event.clientY + 16;
      tip.style.top = `${below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : below}px`;
    });
  }

  // --- copies of figures and numbers ----------------------------------------------------------------------------

  /** The figure as a file of its own: its style sheet inside, its title and caption as words. */
  function standalone(figure) {
    const copy = figure.querySelector("svg[role=img]").cloneNode(true);
    for (const mark of all("[data-said]", copy)) {
      mark.prepend(make("title", {}, mark.dataset.said));
      mark.removeAttribute("data-said");
    }
    for (const mark of all(".on", copy)) mark.classList.remove("on");
    const style = document.createElementNS(SVG, "style");
    style.textContent = `${document.getElementById("figure-style").textContent} svg { background: var(--page); }`;
    copy.prepend(make("title", {}, figure.querySelector("h3").textContent), style);
    copy.setAttribute("font-family", "DejaVu Sans, Verdana, Arial, sans-serif");
    return new XMLSerializer().serializeToString(copy);
  }

  function csv(table) {
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(","));
    return `${rows.join("\n")}\n`;
  }

  async function copied(text, said) {
    const before = said.textContent;
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "copied";
    } catch {
      said.textContent = "the browser doesn't let it be copied";
    }
    setTimeout(() => (said.textContent = before), 1500);
  }

  function save(text, type, name) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function tools(figure) {
    const name = figure.dataset.name;
    const numbers = () => csv(figure.querySelector("table.numbers"));
    const bar = make("div", { class: "tools" });
    bar.append(
      button("copy SVG", (said) => copied(standalone(figure), said)),
      button("save SVG", () => save(standalone(figure), "image/svg+xml", `${name}.svg`)),
      button("save CSV", () => save(numbers(), "text/csv", `${name}.csv`)),
    );
    figure.querySelector("figcaption").after(bar);
  }

  // --- a scatter of any two columns -----------------------------------------------------------------------------

  const WIDTH = 540, HEIGHT = 420, LEFT = 62, RIGHT = 74, TOP = 12, BOTTOM = 46;

  function axisOver(values, first, last, logarithmic) {
    const scale = logarithmic ? Math.log10 : (value) => value;
    let [low, high] = [Math.min(...values), Math.max(...values)].map(scale);
    const room = 0.06 * (high - low) || Math.max(Math.abs(high) * 0.1, 0.1);
    [low, high] = [low - room, high + room];
    return { low, high, logarithmic, first, last, at: (value) => first + ((scale(value) - low) / (high - low)) * (last - first) };
  }

  function ticksOf({ low, high, logarithmic }, about = 6) {
    if (logarithmic) {
      const factors = 3 * (high - low) > about + 2 ? [1] : [1, 2, 5];
      const apart = factors.length > 1 ? 1 : Math.max(1, Math.ceil((high - low) / about));
      const found = [];
      for (let power = Math.floor(low / apart) * apart; power <= Math.ceil(high); power += apart) {
        found.push(...factors.map((factor) => factor * 10 ** power));
      }
      const inside = found.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
      if (inside.length > 1) return inside;
      return ticksOf({ low: 10 ** low, high: 10 ** high, logarithmic: false }, about);
    }
    const size = 10 ** Math.floor(Math.log10((high - low) / about));
    const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => (high - low) / one <= about);
    const found = [];
    for (let count = Math.ceil(low / step); count * step <= high; count++) found.push(count * step);
    return found;
  }

  /** The number of a tick; powers of ten are written as such where zeros would have to be counted. */
  function tickLabel(tick) {
    if (tick === 0 || (Math.abs(tick) >= 1e-3 && Math.abs(tick) < 1e5 && Math.abs(tick) !== 1e4)) return String(Number(tick.toPrecision(4)));
    const [factor, power] = tick.toExponential().split("e");
    const raised = [...power.replace("+", "")].map((letter) => (letter === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[letter])).join("");
    return factor === "1" ? `10${raised}` : `${Number(Number(factor).toPrecision(4))}·10${raised}`;
  }

  const write = (number) => String(Number(number.toPrecision(4)));

  /** The columns of a leaderboard that have numbers, each with its points: the estimator, its sign, value, low and high. */
  function columnsOf(board) {
    return all("thead th[data-column]", board)
      .map((heading, place) => {
        const points = new Map();
        for (const row of all("tbody tr", board)) {
          const { value, low, high } = row.cells[place].dataset;
          if (value !== undefined) points.set(row, [value, low ?? NaN, high ?? NaN].map(Number));
        }
        return { key: heading.dataset.column, name: heading.textContent.trim(), points };
      })
      .filter((column) => column.points.size > 1 && !column.key.endsWith("_ci_low"));
  }

  function explorer(board) {
    const columns = columnsOf(board);
    if (columns.length < 2) return;
    const preferred = (keys) => Math.max(0, keys.map((key) => columns.findIndex((column) => column.key === key)).find((place) => place >= 0) ?? 0);
    const x = chooser(preferred(["gradient_variance_relative", "kl_mean"]));
    const y = chooser(preferred(["test_objective_mean", "test_reward_mean", "gradient_mse_relative"]));
    const side = (words, one) => make("span", {}, make("label", {}, words, one.select), " ", one.label);
    const choice = make("div", { class: "choice" }, side("across ", x), side("up ", y));
    const picture = make("div", { class: "wide" });
    const caption = make("figcaption");
    const numbers = make("div", { class: "wide" });
    const details = make("details", {}, make("summary", {}, "the numbers"), numbers);
    const title = make("h3", {}, "Any two columns");
    const figure = make("figure", { "data-name": "two-columns", class: "explorer" }, title, choice, picture, caption, details);
    const grid = board.closest("section").querySelector(".figures");
    const below = grid && board.compareDocumentPosition(grid) & Node.DOCUMENT_POSITION_FOLLOWING;
    if (below) grid.prepend(figure);
    else board.after(figure);
    tools(figure);
    draw();

    function chooser(chosen) {
      const select = make("select");
      columns.forEach((column, place) => select.append(make("option", { value: place }, column.name)));
      select.value = chosen;
      const log = make("input", { type: "checkbox" });
      const spread = () => {
        const values = [...columns[select.value].points.values()].map(([value]) => value);
        log.checked = values.every((value) => value > 0) && Math.max(...values) > 30 * Math.min(...values);
      };
      select.addEventListener("change", () => { spread(); draw(); });
      log.addEventListener("change", () => draw());
      spread();
      return { select, log, label: make("label", {}, log, " logarithmic") };
    }

    function draw() {
      const [a, b] = [columns[x.select.value], columns[y.select.value]];
      const logs = [x.log.checked, y.log.checked];
      const both = [...a.points.keys()].filter((row) => b.points.has(row));
      const rows = both.filter((row) => [a, b].every((column, side) => !logs[side] || column.points.get(row)[0] > 0));
      const left = both.length - rows.length;
      caption.textContent = `${b.name} against ${a.name}, as in the table, with the intervals that it has.` +
        (left ? ` Not shown: ${left} that aren't positive.` : "");
      numbers.replaceChildren(numbersOf(rows, a, b));
      picture.replaceChildren(rows.length ? pictureOf(rows, a, b, logs) : "No estimator has a number in both columns.");
      titled(picture);
      if (followed.kind) { const { kind, name } = followed; follow(kind, name); follow(kind, name); }
    }
  }

  function numbersOf(rows, a, b) {
    const names = ["estimator", ...[a, b].flatMap((column) => [column.name, `${column.name}, low`, `${column.name}, high`])];
    const head = make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name))));
    const cells = (numbers) => numbers.map((number) => make("td", {}, Number.isNaN(number) ? "-" : String(number)));
    const body = rows.map((row) =>
      make("tr", {}, make("td", {}, row.dataset.estimator), ...cells(a.points.get(row)), ...cells(b.points.get(row))));
    return make("table", { class: "numbers" }, head, make("tbody", {}, ...body));
  }

  function pictureOf(rows, a, b, logs) {
    const ends = (column, log) => rows.flatMap((row) => column.points.get(row)).filter((end) => !Number.isNaN(end) && (!log || end > 0));
    const across = axisOver(ends(a, logs[0]), LEFT, WIDTH - RIGHT, logs[0]);
    const up = axisOver(ends(b, logs[1]), HEIGHT - BOTTOM, TOP, logs[1]);
    const parts = [];
    const word = (at, text, anchor = "middle") => make("text", { x: at[0], y: at[1], "text-anchor": anchor }, text);
    for (const tick of ticksOf(across)) {
      const at = across.at(tick);
      parts.push(make("line", { class: "grid", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }), word([at, HEIGHT - BOTTOM + 16], tickLabel(tick)));
    }
    for (const tick of ticksOf(up)) {
      const at = up.at(tick);
      parts.push(make("line", { class: "grid", x1: LEFT, x2: WIDTH - 14, y1: at, y2: at }), word([LEFT - 6, at + 4], tickLabel(tick), "end"));
    }
    const middle = (TOP + HEIGHT - BOTTOM) / 2;
    parts.push(word([(LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8], a.name));
    parts.push(make("g", { transform: `rotate(-90 13 ${middle})` }, word([13, middle], b.name)));
    const taken = rows.map((row) => around(across.at(a.points.get(row)[0]), up.at(b.points.get(row)[0]), 5));
    for (const row of rows) parts.push(markOf(row, a, b, across, up, taken));
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${b.name} against ${a.name}` });
    svg.append(...parts);
    return svg;
  }

  const around = (x, y, size) => [x - size, y - size, x + size, y + size];
  const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

  /** The sign of an estimator with its intervals, and its name where there is room for it. */
  function markOf(row, a, b, across, up, taken) {
    const { estimator, family } = row.dataset;
    const sign = row.querySelector(".sign path");
    const colour = sign.getAttribute("class").split(" ").pop();
    const [p, q] = [a.points.get(row), b.points.get(row)];
    const [x, y] = [across.at(p[0]), up.at(q[0])];
    const end = (axis, value) => (axis.logarithmic && value <= 0 ? axis.first : axis.at(value));
    const parts = [];
    if (!Number.isNaN(p[1])) parts.push(make("line", { class: `thin ${colour}`, x1: end(across, p[1]), x2: end(across, p[2]), y1: y, y2: y }));
    if (!Number.isNaN(q[1])) parts.push(make("line", { class: `thin ${colour}`, x1: x, x2: x, y1: end(up, q[1]), y2: end(up, q[2]) }));
    parts.push(make("path", { class: sign.getAttribute("class"), d: sign.getAttribute("d"), transform: `translate(${x} ${y})` }));
    const width = 7.8 * estimator.length;
    const place = [[x + 8, y], [x - 8 - width, y], [x + 8, y - 12], [x + 8, y + 12], [x - 8 - width, y - 12], [x - 8 - width, y + 12]]
      .map(([left, at]) => [left, at - 7, left + width, at + 7])
      .find((box) => box[0] > LEFT && box[2] < WIDTH && box[1] > 0 && box[3] < HEIGHT - BOTTOM && !taken.some((other) => overlap(box, other)));
    if (place) {
      taken.push(place);
      const [near, anchor] = place[0] > x ? [place[0], "start"] : [place[2], "end"]; // wider letters don't reach the sign
      parts.push(make("text", { x: near, y: place[3] - 3, "text-anchor": anchor }, estimator));
    }
    const within = (ends) => write(ends[0]) + (Number.isNaN(ends[1]) ? "" : ` (${write(ends[1])} to ${write(ends[2])})`);
    const said = `${estimator}: ${a.name} ${within(p)}, ${b.name} ${within(q)}`;
    return make("g", { "data-estimator": estimator, "data-family": family }, make("title", {}, said), ...parts);
  }

  // --- all of it ------------------------------------------------------------------------------------------------

  document.documentElement.classList.add("scripted");
  all("figure[data-name]").forEach(tools);
  all(".board").forEach(explorer);
  all("table").forEach(sortable);
  all(".board").forEach(filterable);
  titled(document);
  following();
  pointing();
})();
