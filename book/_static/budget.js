/* The budget calculator of the chapter "A budget for your model": its page.

   Plain JavaScript: no framework, no network; works from file://.  budget-formulas.js computes, budget-settings.js knows
   what can be set.  Every page of the book loads the three files, in any order; without the calculator's place this one
   does nothing.  A change makes a new object of settings, and `apply` writes it into the controls and the results. */
(function () {
  "use strict";

  const POSITIONS = 1000; // of a slider
  let kit = null; // what the other two files give, once all are loaded

  // --- what is shown ------------------------------------------------------------------------------------------------

  const LINKS = {
    "Theorem 1": "01_counting.html#thm-counting",
    "Theorem 3": "03_dimension.html#thm-dimension",
    "Theorem 4": "04_accessible_strings.html#thm-strings",
    "Slope": "04d_published.html#prop-slope",
    "Theorem 5": "05_exact_compression.html#thm-caratheodory",
    "Theorem 6": "06_moments.html#thm-moments",
    "Theorem 8": "08_degradation.html#thm-degradation",
  };
  const ROWS = [
    ["counting", "Soft prompt: all its bits", "Theorem 1"],
    ["counting_in_radius", "Soft prompt: numbers of the format within the radius", "Theorem 1"],
    ["resolution", "Soft prompt: only strings told apart at ε (others are not counted)", "Slope"],
    ["prefix", "Prefix: keys and values in every layer", "Theorem 1"],
    ["hard", "Hard prompt of tokens", "Theorem 1"],
  ];
  const FACTS = [
    ["dimension", "coordinates of the soft prompt that outputs can see", "Theorem 3"],
    ["accessible_slope", "random tokens that one vector can decide, if only strings told apart at ε count", "Slope"],
    ["accessible_length", "tokens: length from which half of all strings are out of reach", "Theorem 4"],
    ["recall", "of the random tokens recalled, at most", "Theorem 1"],
    ["exact_compression", "cache positions that serve the queries exactly", "Theorem 5"],
    ["moments", "cache positions of a layer with all its moments", "Theorem 6"],
    ["dilution", "of the attention on one token of a full context or window, at most", "Theorem 8"],
  ];
  const FOUND = "Found by tuning on text: no bound";

  // --- numbers and elements -----------------------------------------------------------------------------------------

  function show(value) {
    if (value === Infinity) return "none is enough";
    if (Number.isInteger(value) && Math.abs(value) < 1e12) return value.toLocaleString("en-US");
    if (Math.abs(value) >= 1000 && Math.abs(value) < 1e12) {
      return value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    }
    const text = value.toPrecision(5);
    return Math.abs(value) >= 1e12 ? text.replace("+", "") : Number(text).toString();
  }

  function compact(value) {
    return value >= 1e5 || (value !== 0 && value < 0.01) ? Number(value.toPrecision(2)).toExponential().replace("+", "") : show(value);
  }

  const count = (n, noun) => `${show(n)} ${noun}${n === 1 ? "" : "s"}`;

  function make(tag, attributes, ...children) {
    const svg = ["svg", "path", "line", "text"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const link = (theorem) => make("a", { href: LINKS[theorem], class: "budget-theorem" },
    theorem === "Slope" ? "Slope of accessible strings" : theorem);

  // --- controls -----------------------------------------------------------------------------------------------------

  /* A slider and a field for one number.  `changed(value, from)` is called with what a reader sets; null: not known. */
  function numberControl([name, label, least, most, whole], changed) {
    const id = `budget-${name}`;
    const zero = least === 0; // a linear scale
    const at = (value) => (zero ? value / most : Math.log(value / least) / Math.log(most / least)) * POSITIONS;
    const back = (place) => (zero ? (place / POSITIONS) * most : least * (most / least) ** (place / POSITIONS));
    const slider = make("input", { type: "range", min: 0, max: POSITIONS, step: 1, "aria-label": label, id: `${id}-slider` });
    const number = make("input", { type: "number", id, min: least, max: most, step: whole ? 1 : "any" });
    const box = name in kit.OPTIONAL ? make("input", { type: "checkbox", id: `${id}-known` }) : null;
    const line = make("div", { class: "budget-control" }, make("label", { for: id }, label));
    if (box) line.append(make("span", { class: "budget-known" }, box, make("label", { for: box.id }, kit.OPTIONAL[name])));
    line.append(slider, number);
    let current = whole ? 4096 : 1; // while nothing is known
    let last = null; // place of the slider

    /* Shows a value, everywhere but in the element that a reader has hold of. */
    const set = (value, from) => {
      const known = value !== null;
      if (known) current = value;
      if (box) box.checked = known;
      line.classList.toggle("budget-unknown", box !== null && !known);
      if (from !== slider && known) slider.value = Math.round(at(value));
      if (from !== number && known) number.value = whole ? value : Number(value.toPrecision(5));
      if (from !== number && !known && !box) number.value = "";
      slider.setAttribute("aria-valuetext", known ? show(value) : "not given");
      number.removeAttribute("aria-invalid");
    };
    if (box) box.addEventListener("change", () => changed(box.checked ? current : null, box));
    slider.addEventListener("input", () => {
      const place = Number(slider.value);
      let value = whole ? Math.round(back(place)) : Number(back(place).toPrecision(4));
      // a step of the slider is a step of the number, even where several positions round to one
      if (whole && value === current && last !== null && place !== last) value += place > last ? 1 : -1;
      last = place;
      changed(Math.min(most, Math.max(least, value)), slider);
    });
    slider.addEventListener("focus", () => { last = Number(slider.value); });
    slider.addEventListener("change", () => { slider.value = Math.round(at(current)); last = Number(slider.value); });
    number.addEventListener("input", () => {
      const value = number.validity.badInput ? undefined : kit.parseNumber(name, number.value);
      if (value === undefined) number.setAttribute("aria-invalid", "true");
      else changed(value, number);
    });
    /* What is shown, unknown as it is, until something is known. */
    const begin = (value) => { if (value !== null) set(value); };
    return { line, set, number, begin };
  }

  function select(name, options, changed) {
    const element = make("select", { id: `budget-${name}` });
    for (const [value, text] of options) element.append(make("option", { value }, text));
    element.addEventListener("change", () => changed(element.value));
    return element;
  }

  const choiceLine = (label, element) => make("div", { class: "budget-choice" }, make("label", { for: element.id }, label), element);

  /* Radio buttons: what is asked. */
  function askControl(changed) {
    const line = make("div", { class: "budget-ask", role: "radiogroup", "aria-label": "what is asked" });
    const buttons = kit.ASK.map(([value, text]) => {
      const button = make("input", { type: "radio", name: "budget-ask", id: `budget-ask-${value}`, value });
      button.addEventListener("change", () => changed(value));
      line.append(make("span", {}, button, make("label", { for: button.id }, text)));
      return button;
    });
    return { line, set: (value) => { for (const button of buttons) button.checked = button.value === value; } };
  }

  /* A place for the text of a config.json.  `read(text)` returns a sentence or throws an Error with one. */
  function pasteControl(read) {
    const text = make("textarea", { id: "budget-config", rows: 6, spellcheck: "false", placeholder: '{"model_type": "llama", …}' });
    const button = make("button", { type: "button", id: "budget-config-read" }, "read it");
    const answer = make("p", { class: "budget-answer", id: "budget-config-answer", role: "status" });
    button.addEventListener("click", () => {
      try {
        answer.textContent = read(text.value);
        answer.classList.remove("budget-refused");
      } catch (error) {
        answer.textContent = error.message;
        answer.classList.add("budget-refused");
      }
    });
    return make("details", { class: "budget-paste" }, make("summary", {}, "paste a config.json"),
      make("label", { for: text.id }, "fields of a Hugging Face configuration; nothing leaves this page"), text, button, answer);
  }

  /* The form.  `change(name, value, from)` is called for every setting; returns `write(settings, from)`, and the form. */
  function makeForm(data, change, read) {
    const inputs = {};
    const shownFor = []; // [element, questions]
    const chosen = select("model", [...Object.keys(data.models), kit.OWN].map((name) => [name, name]), (value) => change("model", value));
    const formats = Object.entries(data.formats).map(([name, { bits }]) => [name, `${name}: ${count(bits, "bit")}`]);
    const precision = select("precision", formats, (value) => change("precision", value));
    const choices = kit.CHOICES.map(([name, label, options]) => [name, label,
      select(name, options, (value) => change(name, name === "causal" ? value === "true" : value))]);
    const ask = askControl((value) => change("ask", value));
    const form = make("form", { class: "budget-controls" });
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const [legend, controls, questions] of kit.CONTROLS) {
      const group = make("fieldset", legend === "Model" ? { class: "budget-model" } : {}, make("legend", {}, legend));
      if (legend === "Question") group.append(ask.line, choiceLine("number format", precision));
      if (legend === "Model") {
        group.append(choiceLine("model", chosen));
        if (Object.keys(data.config.families).length) group.append(pasteControl(read));
      }
      for (const spec of controls) {
        const name = spec[0];
        inputs[name] = numberControl(spec, (value, from) => change(name, value, from));
        inputs[name].begin(data.start[name] ?? null);
        group.append(inputs[name].line);
        if (spec[5]) shownFor.push([inputs[name].line, spec[5]]);
      }
      if (legend === "Model") group.append(...choices.map(([, label, element]) => choiceLine(label, element)));
      if (questions) shownFor.push([group, questions]);
      form.append(group);
    }

    function write(settings, from) {
      chosen.value = settings.model;
      precision.value = settings.precision;
      ask.set(settings.ask);
      for (const [name, { set }] of Object.entries(inputs)) set(settings[name], from);
      for (const [name, , element] of choices) element.value = String(settings[name]);
      for (const [element, questions] of shownFor) element.hidden = !questions.includes(settings.ask);
      const uneven = isUneven(settings);
      inputs.heads.number.setCustomValidity(uneven ? "a multiple of the heads with keys and values" : "");
      if (uneven) inputs.heads.number.setAttribute("aria-invalid", "true");
    }
    return { form, write };
  }

  // --- results ------------------------------------------------------------------------------------------------------

  const isUneven = (settings) => settings.heads !== null && settings.heads % settings.kv_heads !== 0;

  /* What the formulas take. */
  function inputOf(settings) {
    return { ...settings, heads: isUneven(settings) ? null : settings.heads,
      eps: settings.radius === null ? null : settings.eps, // only their ratio counts
      attention: settings.window === null ? "full" : "window" };
  }

  const questionOf = (settings) => (settings.ask === "tokens" ? { tokens: settings.tokens }
    : { facts: settings.facts, labels: settings.labels });

  function amountOf(settings) {
    return settings.ask === "tokens" ? count(settings.tokens, "random token")
      : `${count(settings.facts, "fact")} with labels of ${show(settings.labels)} values`;
  }

  function bar(share, kind) {
    const outer = make("span", { class: "budget-bar", "aria-hidden": "true" });
    outer.append(make("span", { style: `width:${Math.max(0.5, 100 * share)}%`, class: kind }));
    return outer;
  }

  function row(attributes, head, cells) {
    return make("tr", attributes, make("th", { scope: "row" }, ...head),
      ...cells.map((text) => make("td", { class: "budget-number" }, text)));
  }

  /* The head of a table and its rows. */
  function fill(table, caption, columns, rows) {
    const heads = columns.map((text, i) => make("th", { scope: "col", ...(i ? { class: "budget-number" } : {}) }, text));
    table.replaceChildren(make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  }

  function foundRow(slope, share, cells) {
    const source = make("a", { href: LINKS.Slope, class: "budget-theorem" }, "published slope");
    return row({ "data-found": slope }, [`${FOUND} `, source, ...(share === null ? [] : [bar(share, "found")])], cells);
  }

  /* Bits and tokens of a prompt. */
  function showHeld(table, found, settings, slope) {
    const shown = ROWS.filter(([key]) => found.values[key][1] !== null);
    const most = Math.max(1, Math.log10(Math.max(...shown.map(([key]) => found.values[key][1]))));
    const share = (bits) => Math.log10(Math.max(1, bits)) / most;
    const rows = shown.map(([key, title, theorem]) => {
      const [, bits, tokens] = found.values[key];
      const least = key === found.smallest;
      return row({ "data-bound": key, "data-bits": bits },
        [`${title}${least ? " (smallest for a soft prompt)" : ""} `, link(theorem), bar(share(bits), least ? "least" : "")],
        [show(bits), show(tokens)]);
    });
    const tokens = slope === null ? null : slope * settings.prompt_length;
    if (slope !== null) rows.push(foundRow(slope, share(tokens * Math.log2(settings.vocabulary)), ["", show(tokens)]));
    fill(table, "What the theorems allow (bars: logarithmic scale)", ["bound", "bits", "tokens"], rows);
  }

  const smallestOf = (bits) => ["counting", "counting_in_radius"].reduce(
    (least, key) => (bits[key] !== null && bits[key] < bits[least] ? key : least));

  /* Bits a vector and least lengths. */
  function showNeeded(table, found, settings, slope) {
    const shown = ROWS.filter(([key]) => found.lengths[key] !== null);
    const finite = shown.map(([key]) => found.lengths[key]).filter(Number.isFinite);
    const most = Math.log1p(Math.max(1, ...finite));
    const share = (length) => Math.min(1, Math.log1p(length) / most);
    const rows = shown.map(([key, title, theorem]) => {
      const length = found.lengths[key];
      const strictest = key === found.largest;
      return row({ "data-bound": key, "data-length": length },
        [`${title}${strictest ? " (strictest for a soft prompt)" : ""} `, link(theorem), bar(share(length), strictest ? "least" : "")],
        [show(found.one[key]), show(length)]);
    });
    if (slope !== null) {
      const length = settings.ask === "tokens" ? Math.ceil(settings.tokens / slope) : null;
      rows.push(foundRow(slope, length === null ? null : share(length), ["", length === null ? "not measured" : `about ${show(length)}`]));
    }
    fill(table, "How long a prompt must be at least (bars: logarithmic scale)", ["bound", "bits a vector", "vectors"], rows);
  }

  function showFacts(list, found, input, uneven) {
    const wanted = FACTS.filter(([key]) => found.values[key][0] !== null);
    list.replaceChildren(...wanted.map(([key, text, theorem]) => {
      const value = found.values[key][0];
      const note = found.vacuous.includes(key) ? " (vacuous: forbids nothing here)" : "";
      const shown = key === "recall" || key === "dilution" ? `${show(100 * value)} %` : show(value);
      return make("li", { "data-bound": key, "data-value": value }, make("strong", {}, shown), ` ${text}${note} `, link(theorem));
    }));
    if (input.heads === null) {
      list.append(make("li", {}, uneven ? "H must be a multiple of the heads with keys and values. "
        : "Cache positions that serve the queries exactly: give H, the heads with queries. ", link("Theorem 5")));
    }
  }

  const within = (key, settings) => (key === "counting_in_radius" ? `If all vectors stay within r = ${show(settings.radius)}: at` : "At");
  const nameOf = (key) => ROWS.find(([other]) => other === key)[1].replace("Soft prompt: ", "");

  function heldSentence(found, settings) {
    const [, bits, tokens] = found.values[found.smallest];
    return `${within(found.smallest, settings)} most ${show(bits)} bits in this soft prompt, or ${show(tokens)} random tokens. ` +
      `Smallest bound: ${nameOf(found.smallest)}.`;
  }

  function neededSentence(found, settings) {
    const length = found.lengths[found.largest];
    const amount = `${amountOf(settings)}, ${show(found.bits)} bits`;
    if (length === Infinity) return `No soft prompt can hold ${amount}: within r = ${show(settings.radius)} a vector holds nothing.`;
    return `${within(found.largest, settings)} least ${count(length, "vector")} for ${amount}. ` +
      `Strictest bound: ${nameOf(found.largest)}. That so many are enough, no bound says.`;
  }

  /* What tuning was found to store, or where that was measured. */
  function foundSentence(settings, slope, bound, data) {
    if (slope === null) {
      const [low, high] = data.ratio.map((ratio) => ratio.toFixed(1));
      return `Found by tuning: nothing was measured for a model of your own. For orientation, and no bound: for the ` +
        `${Object.keys(data.models).length} published models the smallest bound in bf16 is ${low} to ${high} times what tuning found.`;
    }
    const each = `Found by tuning: ${show(slope)} tokens a vector (natural text, ${data.source})`;
    const total = slope * settings.prompt_length;
    const what = {
      prompt: `, about ${show(Math.round(total))} with ${count(settings.prompt_length, "vector")}.`,
      tokens: `, about ${count(Math.ceil(settings.tokens / slope), "vector")} for ${count(settings.tokens, "token")} of text.`,
      facts: "; with facts nothing was measured.",
    }[settings.ask];
    const times = settings.ask === "prompt" ? ` The smallest bound is ${show(Number((bound / total).toPrecision(3)))} times that.` : "";
    return `${each}${what} A measurement, and no bound.${times}`;
  }

  // --- the chart ----------------------------------------------------------------------------------------------------

  /* Tokens against prompt length: each bound is a straight line through zero; beyond the strictest is forbidden.
     `picked`: {m, amount}, the length that is marked and, if asked for, the amount in random tokens. */
  function drawChart(one, strictest, slope, picked, perToken, width) {
    const height = 260;
    const [left, right, top, bottom] = [64, width < 480 ? 108 : 130, 30, 40];
    const span = 2 * picked.m;
    const names = { counting: "all bits", counting_in_radius: "within radius", resolution: "told apart", hard: "hard prompt" };
    const kindOf = (key) => (key === strictest ? "least" : key === "hard" ? "hard" : "bound");
    const lines = Object.keys(names).filter((key) => one[key] !== null)
      .map((key) => ({ kind: kindOf(key), slope: one[key] / perToken, label: names[key] }));
    const forbidden = one[strictest] / perToken;
    if (slope !== null) lines.push({ kind: "found", slope, label: "found, on text" });
    const highest = 1.08 * span * Math.max(...lines.map((line) => line.slope));
    const x = (m) => left + (m / span) * (width - left - right);
    const y = (tokens) => height - bottom - (tokens / highest) * (height - top - bottom);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": `Random tokens against prompt length, straight lines through zero. At ${count(picked.m, "vector")} ` +
        lines.map((line) => `${line.label}: ${show(line.slope * picked.m)} tokens`).join("; ") });
    const text = (attributes, content) => svg.append(make("text", attributes, content));
    const reach = span * forbidden;
    svg.append(make("path", { class: "forbidden", d: `M${x(0)},${y(0)} L${x(span)},${y(reach)} L${x(span)},${top} L${x(0)},${top} Z` }));
    svg.append(make("path", { class: "axis", d: `M${left},${top} V${height - bottom} H${width - right}` }));
    for (const part of [0, 0.5, 1]) {
      text({ x: x(span * part), y: height - bottom + 16, "text-anchor": "middle" }, show(span * part));
      const tick = 10 ** Math.floor(Math.log10(highest / 1.08));
      const value = part === 0 ? 0 : Math.floor((highest / 1.08 / tick) * part * 2) * tick / 2;
      text({ x: left - 6, y: y(value) + 4, "text-anchor": "end" }, compact(value));
    }
    text({ x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "prompt vectors m");
    text({ x: left - 6, y: 14 }, "random tokens");
    text({ x: left + 6, y: top + 14, class: "bound" }, "forbidden");
    svg.append(make("line", { class: "marker", x1: x(picked.m), x2: x(picked.m), y1: top, y2: height - bottom }));
    if (picked.amount !== null) {
      svg.append(make("line", { class: "marker", x1: x(0), x2: x(span), y1: y(picked.amount), y2: y(picked.amount) }));
      text({ x: left + 6, y: Math.max(top + 32, y(picked.amount) - 4), class: "hard" }, "asked");
    }
    for (const line of labelled(lines, (one) => y(one.slope * span), top, height - bottom)) {
      svg.append(make("line", { class: line.kind, x1: x(0), y1: y(0), x2: x(span), y2: line.end }));
      svg.append(make("line", { class: "leader", x1: x(span) + 2, y1: line.end, x2: x(span) + 12, y2: line.at - 4 }));
      text({ class: line.kind, x: x(span) + 15, y: line.at }, line.label);
    }
    return svg;
  }

  /* Lines with the ends and the places of their labels, of which none covers another. */
  function labelled(lines, endOf, top, bottom) {
    const ends = lines.map((line) => ({ ...line, end: endOf(line) })).sort((a, b) => a.end - b.end);
    let previous = top - 6;
    for (const line of ends) line.at = previous = Math.max(line.end + 4, previous + 15);
    let next = bottom + 15;
    for (const line of [...ends].reverse()) line.at = next = Math.min(line.at, next - 15);
    return ends;
  }

  // --- together -----------------------------------------------------------------------------------------------------

  /* The results below the form: `render(settings)` fills them. */
  function makeResults(data) {
    const summary = make("output", { class: "budget-summary", "aria-live": "polite" });
    const tuned = make("p", { class: "budget-tuned" });
    const table = make("table");
    const facts = make("ul", { class: "budget-facts" });
    const chart = make("div", { class: "budget-chart" });

    function render(settings) {
      const input = inputOf(settings);
      const slope = kit.isPublished(data, settings.model) ? data.models[settings.model].slope : null;
      const width = Math.max(280, Math.min(720, chart.clientWidth || 640));
      const perToken = Math.log2(settings.vocabulary);
      const picture = (one, strictest, picked) => chart.replaceChildren(drawChart(one, strictest, slope, picked, perToken, width));
      facts.hidden = settings.ask !== "prompt";
      if (settings.ask === "prompt") {
        const found = kit.bounds(input, data.formats);
        const each = ([key, [, bits]]) => [key, bits === null ? null : bits / settings.prompt_length];
        const one = Object.fromEntries(Object.entries(found.values).map(each));
        summary.textContent = heldSentence(found, settings);
        tuned.textContent = foundSentence(settings, slope, found.values[found.smallest][2], data);
        showHeld(table, found, settings, slope);
        showFacts(facts, found, input, isUneven(settings));
        picture(one, found.smallest, { m: settings.prompt_length, amount: null });
        return;
      }
      const found = kit.needed(input, questionOf(settings), data.formats);
      const m = found.lengths[found.largest];
      summary.textContent = neededSentence(found, settings);
      tuned.textContent = foundSentence(settings, slope, null, data);
      showNeeded(table, found, settings, slope);
      if (m === Infinity) chart.replaceChildren();
      else picture(found.one, smallestOf(found.one), { m, amount: found.bits / perToken });
    }
    return { elements: [summary, tuned, table, chart, facts], render, chart };
  }

  function mount(place, data) {
    const worst = kit.worstDifference(data.reference, data.formats);
    place.dataset.worst = String(worst);
    if (!(worst <= 1e-9)) {
      place.replaceChildren(make("p", { role: "alert" },
        "The calculator is switched off: in this browser its numbers differ from those of the Python functions."));
      return;
    }
    let settings = kit.startOf(data);
    let sameValues = true; // the dimension of a value follows that of a key until somebody says otherwise
    let waiting = null;

    function apply(next, from) {
      settings = next;
      write(settings, from);
      results.render(settings);
    }

    /* Browsers allow few changes of the address a second. */
    function tell() {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        const told = kit.toAddress(settings, data);
        if (told || location.hash.startsWith(kit.MARK)) history.replaceState(null, "", told || location.pathname + location.search);
      }, 150);
    }

    function change(name, value, from) {
      let next = { ...settings, [name]: value };
      if (name === "model") {
        next = kit.isPublished(data, value) ? kit.withModel(settings, value, data) : kit.withoutModel(settings, null);
        sameValues = next.value_dim === next.key_dim;
      } else if (kit.SHAPE.includes(name) && kit.isPublished(data, settings.model) && value !== settings[name]) {
        next = kit.withoutModel(next, name);
      }
      if (name === "value_dim") sameValues = false;
      if (name === "key_dim" && sameValues) next.value_dim = value;
      wrong.hidden = true;
      apply(next, from);
      tell();
    }

    function read(text) {
      const found = kit.readConfig(text, settings, data);
      sameValues = found.settings.value_dim === found.settings.key_dim;
      apply(found.settings);
      tell();
      return found.answer;
    }

    /* What the address asks for; the start, with a sentence, if it cannot be read.  Other places of the page are left. */
    function follow() {
      const told = kit.fromAddress(location.hash, data);
      if (told === null) return;
      wrong.hidden = told.wrong === undefined;
      wrong.textContent = wrong.hidden ? ""
        : `The address has a setting that cannot be read, ${told.wrong.slice(0, 80)}: this is the start instead.`;
      const next = wrong.hidden ? told : kit.startOf(data);
      sameValues = next.value_dim === next.key_dim;
      apply(next);
      place.scrollIntoView();
    }

    const { form, write } = makeForm(data, change, read);
    const results = makeResults(data);
    const wrong = make("p", { class: "budget-wrong", role: "alert" });
    wrong.hidden = true;
    const checked = make("p", { class: "budget-checked" },
      `Checked before it was drawn: ${data.reference.length} settings, in both directions, agree with the Python functions to ` +
      `${worst === 0 ? "the last digit" : `a relative ${worst.toExponential(0)}`}. The address of this page keeps what you set.`);
    place.replaceChildren(wrong, form, ...results.elements, checked);
    apply(settings);
    follow();
    window.addEventListener("hashchange", follow);
    let drawn = results.chart.clientWidth;
    window.addEventListener("resize", () => {
      if (results.chart.clientWidth === drawn) return;
      drawn = results.chart.clientWidth;
      results.render(settings);
    });
  }

  function start() {
    const place = document.getElementById("budget-calculator");
    const data = document.getElementById("budget-data");
    kit = window.promptMemoryBudget;
    if (place && data) mount(place, JSON.parse(data.textContent));
  }

  // Not before all files were run: they are loaded in any order.
  if (document.readyState === "complete") start();
  else document.addEventListener("DOMContentLoaded", start);
})();
