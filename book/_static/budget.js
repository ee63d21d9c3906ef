/* The budget calculator of the chapter "A budget for your model".

   Plain JavaScript: no framework, no network; works from file://. The formulas are those of src/prompt_memory/bounds.py.
   The page carries a table of settings with the results of the Python functions; nothing is shown unless this script
   agrees with all of them. Every page of the book loads this file; without the calculator's place it does nothing. */
(function () {
  "use strict";

  // --- formulas -----------------------------------------------------------------------------------------------------

  const SOFT = ["counting", "counting_in_radius", "entropy"]; // what bounds a soft prompt

  /* log2 of how many numbers of a binary floating-point format lie in [-radius, radius]. */
  function floatBits(radius, exponent, fraction) {
    const bias = 2 ** (exponent - 1) - 1;
    const steps = 2 ** fraction;
    const largest = (2 ** exponent - 1) * steps - 1;
    let power = Math.floor(Math.log2(radius));
    while (2 ** (power + 1) <= radius) power += 1; // the logarithm may be rounded
    while (2 ** power > radius) power -= 1;
    const index = power < 1 - bias
      ? Math.floor((radius / 2 ** (1 - bias)) * steps)
      : (power + bias) * steps + Math.floor((radius / 2 ** power - 1) * steps);
    return Math.log2(2 * Math.min(index, largest) + 1);
  }

  function binomial(n, k) {
    let product = 1;
    for (let i = 0; i < k; i += 1) product = (product * (n - i)) / (i + 1);
    return product;
  }

  /* R_q(1 - a) at a = 1/q + advantage, in bits. */
  function rateAboveChance(advantage, q) {
    const a = Math.min(1, 1 / q + advantage);
    const rest = a === 1 ? 0 : (1 - a) * Math.log1p(Math.max(-1, (-q * advantage) / (q - 1)));
    return Math.max(0, (a * Math.log1p(q * advantage) + rest) / Math.LN2);
  }

  function recallCeiling(bits, n, q) {
    if (bits >= n * Math.log2(q)) return 1;
    let low = 0;
    let high = 1 - 1 / q;
    for (;;) {
      const middle = (low + high) / 2;
      if (!(low < middle && middle < high)) break;
      if (n * rateAboveChance(middle, q) < bits) low = middle;
      else high = middle;
    }
    return Math.min(1, 1 / q + high);
  }

  /* What `prompt_memory.budget.budget` computes: {values: {key: [value, bits, tokens]}, smallest, vacuous}. */
  function bounds(input, formats) {
    const a = input;
    const m = input.prompt_length;
    const form = formats[input.precision];
    const given = (name) => (input[name] === undefined ? null : input[name]);
    const radius = given("radius");
    const eps = given("eps");
    const margin = given("margin");
    const length = given("length");
    let range = given("logit_range");
    if (range === null && given("logit_cap") !== null) range = 2 * a.logit_cap;
    const perToken = Math.log2(a.vocabulary);
    const caches = given("cache") || [[a.kv_heads, a.key_dim, a.value_dim]];
    const stored = caches.reduce((sum, [heads, keys, values]) => sum + heads * (keys + values), 0);
    const compressed = given("compressed");
    const cached = compressed !== null ? a.layers * compressed : given("cache") ? stored : a.layers * stored;
    const attention = given("attention") || "full";
    const values = {};
    const vacuous = [];
    const put = (key, value, empty) => {
      values[key] = [value, null, null];
      if (empty) vacuous.push(key);
    };
    const putBits = (key, bits) => {
      values[key] = [bits, bits, bits === null ? null : bits / perToken];
    };

    putBits("counting", form.bits * a.width * m);
    const limit = form.counted_to === null ? Infinity : form.counted_to;
    const counted = form.exponent !== null && radius !== null && radius <= limit;
    putBits("counting_in_radius", counted ? a.width * m * floatBits(radius, form.exponent, form.fraction) : null);
    const slope = eps === null ? null : (a.width * Math.log1p((2 * radius) / eps)) / Math.log(a.vocabulary);
    putBits("resolution", slope === null ? null : m * slope * perToken);
    const entropy = () => (a.width * m * Math.log1p((radius * input.lipschitz) / (margin / 2))) / Math.LN2;
    putBits("entropy", margin === null ? null : entropy());
    putBits("prefix", compressed === null ? form.bits * cached * m : null);
    putBits("hard", m * perToken);

    let smallest = "counting";
    for (const key of SOFT) {
      if (values[key][1] !== null && values[key][1] < values[smallest][1]) smallest = key;
    }
    const B = values[smallest][1];
    const ambient = a.width - (a.norm === "layer" ? 1 : 0);
    put("dimension", m * (a.causal || a.layers === 1 ? Math.min(ambient, cached) : ambient));
    put("prefix_dimension", compressed === null ? m * cached : null);
    put("accessible_slope", slope);
    const context = given("context");
    const longest = a.causal ? (B + 1) / perToken : null;
    put("accessible_length", longest, longest !== null && context !== null && longest > context);
    const fraction = length === null || !a.causal ? null : 2 ** Math.min(0, B - length * perToken);
    put("accessible_fraction", fraction, fraction === 1);
    const recall = length === null ? null : recallCeiling(B, length, a.vocabulary);
    put("recall", recall, recall === 1);
    const tooMany = (count) => count !== null && context !== null && count >= context;
    const written = given("written") !== null ? a.written : a.layers * a.heads * a.value_dim;
    const exact = (a.causal || a.layers === 1) && attention !== "other" && a.heads !== null ? input.queries * written : null;
    put("exact_compression", exact, tooMany(exact));
    let moments = null;
    if (["learned", "rotary"].includes(a.positions) && given("logit_cap") === null && attention === "full") {
      const k = input.degree;
      const count = ([heads, keys, values]) => heads * (binomial(keys + k, k) * (1 + values) - 1) + 1;
      moments = Math.max(...caches.map(count));
    }
    put("moments", moments, tooMany(moments));
    const window = given("window");
    const seen = window === null ? context : context === null ? window : Math.min(window, context);
    const covered = seen !== null && (attention === "full" || (attention === "window" && window !== null));
    put("dilution", covered && range !== null ? 1 / (1 + (seen - 1) * Math.exp(-range)) : null);
    return { values, smallest, vacuous: vacuous.sort() };
  }

  /* The largest relative difference from a table of results; infinite if anything else differs. */
  function worstDifference(reference, formats) {
    let worst = 0;
    for (const { input, bounds: wanted } of reference) {
      const found = bounds(input, formats);
      if (found.smallest !== wanted.smallest) return Infinity;
      if (found.vacuous.join() !== wanted.vacuous.join()) return Infinity;
      if (Object.keys(found.values).sort().join() !== Object.keys(wanted.values).sort().join()) return Infinity;
      for (const [key, numbers] of Object.entries(wanted.values)) {
        for (let i = 0; i < 3; i += 1) {
          const [x, y] = [found.values[key][i], numbers[i]];
          if ((x === null) !== (y === null)) return Infinity;
          if (y === null || x === y) continue;
          const difference = Math.abs(x - y) / Math.abs(y);
          worst = Math.max(worst, difference); // NaN stays NaN
        }
      }
    }
    return worst;
  }

  // --- the page -----------------------------------------------------------------------------------------------------

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
  const CONTROLS = [ // name, label, least, most, whole number
    ["Prompt", [
      ["prompt_length", "vectors m", 1, 10000, true],
    ]],
    ["Model", [
      ["width", "width d", 8, 16384, true],
      ["layers", "layers L", 1, 128, true],
      ["heads", "heads with queries H", 1, 256, true],
      ["kv_heads", "heads with keys and values", 1, 128, true],
      ["key_dim", "dimension of a key", 4, 512, true],
      ["value_dim", "dimension of a value", 4, 512, true],
      ["vocabulary", "vocabulary V", 2, 300000, true],
      ["context", "context, tokens", 16, 1048576, true],
      ["window", "window, tokens: some layers see no more", 16, 1048576, true],
    ]],
    ["What a configuration does not say", [
      ["radius", "radius r of the vectors", 0.01, 10000, false],
      ["eps", "distance ε at which strings are told apart", 1e-8, 10000, false],
      ["logit_range", "range Δ of softmax logits", 0.1, 100, false],
    ]],
    ["Questions", [
      ["length", "random tokens to recall", 1, 1000000, true],
      ["queries", "queries to compress for", 1, 1000, true],
      ["degree", "degree k of the moments", 0, 8, true],
    ]],
  ];
  // What may be left out: a box says whether it is known.
  const OPTIONAL = { window: "sliding window", radius: "radius known", eps: "distance ε known", logit_range: "logit range known" };
  const CHOICES = [ // name, label, [value, text]
    ["norm", "norm", [["none", "RMSNorm or another"], ["layer", "LayerNorm only"]]],
    ["positions", "positions", [["rotary", "rotary or learned"], ["alibi", "ALiBi"], ["unknown", "another kind"]]],
    ["causal", "tokens see", [["true", "earlier tokens only"], ["false", "all tokens"]]],
  ];
  const POSITIONS = 1000; // of a slider

  function show(value) {
    if (Number.isInteger(value) && Math.abs(value) < 1e12) return value.toLocaleString("en-US");
    if (Math.abs(value) >= 1000 && Math.abs(value) < 1e12) {
      return value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    }
    const text = value.toPrecision(5);
    return Math.abs(value) >= 1e12 ? text.replace("+", "") : Number(text).toString();
  }

  function make(tag, attributes, ...children) {
    const svg = ["svg", "path", "line", "text"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function mount(place, data) {
    const worst = worstDifference(data.reference, data.formats);
    place.dataset.worst = String(worst);
    if (!(worst <= 1e-9)) {
      place.replaceChildren(make("p", { role: "alert" },
        "The calculator is switched off: in this browser its numbers differ from those of the Python functions."));
      return;
    }
    const state = { ...data.models[data.start.model], ...data.start };
    const inputs = {};
    const known = Object.fromEntries(Object.keys(OPTIONAL).map((name) => [name, false]));
    let sameValues = true; // the dimension of a value follows that of a key until somebody says otherwise
    place.replaceChildren();

    const chosen = make("select", { id: "budget-model" });
    for (const name of [...Object.keys(data.models), "your own"]) chosen.append(make("option", { value: name }, name));
    const precision = make("select", { id: "budget-precision" });
    for (const [name, form] of Object.entries(data.formats)) {
      precision.append(make("option", { value: name }, `${name}: ${form.bits} bit${form.bits > 1 ? "s" : ""}`));
    }
    const form = make("form", { class: "budget-controls" });
    form.addEventListener("submit", (event) => event.preventDefault());

    const choice = (label, select) => make("div", { class: "budget-choice" },
      make("label", { for: select.id }, label), select);

    function control([name, label, least, most, whole]) {
      const id = `budget-${name}`;
      const zero = least === 0; // a linear scale
      const at = (value) => (zero ? (value / most) : Math.log(value / least) / Math.log(most / least)) * POSITIONS;
      const back = (place) => (zero ? (place / POSITIONS) * most : least * (most / least) ** (place / POSITIONS));
      const slider = make("input", { type: "range", min: 0, max: POSITIONS, step: 1, "aria-label": label, id: `${id}-slider` });
      const number = make("input", { type: "number", id, min: least, max: most, step: whole ? 1 : "any" });
      const set = (value, from) => {
        state[name] = value;
        if (from !== slider && value !== null) slider.value = Math.round(at(value));
        if (from !== number) number.value = value === null ? "" : whole ? value : Number(value.toPrecision(5));
        slider.setAttribute("aria-valuetext", value === null ? "not given" : show(value));
        number.removeAttribute("aria-invalid");
      };
      const box = name in OPTIONAL ? make("input", { type: "checkbox", id: `${id}-known` }) : null;
      const mark = (is) => {
        known[name] = is;
        box.checked = is;
        line.classList.toggle("budget-unknown", !is);
      };
      const line = make("div", { class: "budget-control" }, make("label", { for: id }, label));
      if (box) {
        line.append(make("span", { class: "budget-known" }, box, make("label", { for: box.id }, OPTIONAL[name])));
        box.addEventListener("change", () => { mark(box.checked); own(name); update(); });
      }
      const chosenByHand = (value, from) => {
        set(value, from);
        if (name === "value_dim") sameValues = false;
        if (name === "key_dim" && sameValues) inputs.value_dim.set(value);
        own(name); // before the box, which it may clear
        if (box) mark(true);
        update();
      };
      let last = null;
      slider.addEventListener("input", () => {
        const place = Number(slider.value);
        let value = back(place);
        if (whole) {
          value = Math.round(value);
          const before = state[name];
          // a step of the slider is a step of the number, even where several positions round to one
          if (value === before && last !== null && place !== last) value += place > last ? 1 : -1;
        } else {
          value = Number(value.toPrecision(4));
        }
        last = place;
        chosenByHand(Math.min(most, Math.max(least, value)), slider);
      });
      slider.addEventListener("focus", () => { last = Number(slider.value); });
      slider.addEventListener("change", () => { slider.value = Math.round(at(state[name])); last = Number(slider.value); });
      number.addEventListener("input", () => {
        const value = Number(number.value);
        if (number.value === "" && !number.validity.badInput && (box || name === "heads")) {
          if (box) mark(false);
          else set(null, number);
          own(name);
          update();
          return;
        }
        if (number.value === "" || !(value >= least && value <= most) || (whole && !Number.isInteger(value))) {
          number.setAttribute("aria-invalid", "true");
          return;
        }
        chosenByHand(value, number);
      });
      inputs[name] = { set, mark: box ? mark : null, number };
      line.append(slider, number);
      return line;
    }

    const choices = Object.fromEntries(CHOICES.map(([name, , options]) => {
      const select = make("select", { id: `budget-${name}` });
      for (const [value, text] of options) select.append(make("option", { value }, text));
      select.addEventListener("change", () => {
        state[name] = name === "causal" ? select.value === "true" : select.value;
        own(name);
        update();
      });
      return [name, select];
    }));
    const showChoices = () => {
      choices.norm.value = state.norm === "layer" ? "layer" : "none";
      choices.positions.value = state.positions === "learned" ? "rotary" : state.positions;
      choices.causal.value = String(state.causal);
    };

    /* A change by hand makes the model the reader's own: what was known of the published one and is not on the page, or
       not known of every model, is forgotten. */
    function own(name) {
      const model = data.models[chosen.value];
      const part = name === "window" ? known.window !== (model && model.window !== null) || state.window !== model.window
        : model && name in model && !(name in OPTIONAL) && model[name] !== state[name];
      if (!model || !part) return;
      chosen.value = "your own";
      forget(name);
    }

    function forget(name) {
      Object.assign(state, { cache: null, written: null, compressed: null, logit_cap: null, attention: "full" });
      if (name !== "norm") state.norm = "none"; // then all d coordinates count, which is always an upper bound
      if (name !== "positions") state.positions = "unknown";
      if (name !== "heads") inputs.heads.set(null);
      for (const [other, { mark }] of Object.entries(inputs)) if (mark && other !== name) mark(false);
      showChoices();
    }

    for (const [legend, controls] of CONTROLS) {
      const group = make("fieldset", {}, make("legend", {}, legend));
      if (legend === "Model") group.append(choice("model", chosen));
      if (legend === "Prompt") group.append(choice("number format", precision));
      group.append(...controls.map(control));
      if (legend === "Model") group.append(...CHOICES.map(([name, label]) => choice(label, choices[name])));
      form.append(group);
    }
    function take(model) {
      Object.assign(state, model);
      sameValues = model.value_dim === model.key_dim;
      for (const [name, { set, mark }] of Object.entries(inputs)) {
        if (name in model && model[name] !== null) set(model[name]);
        if (mark) mark(name === "window" ? model.window !== null : data.known.includes(name) && name in model);
      }
      showChoices();
    }
    chosen.addEventListener("change", () => {
      const model = data.models[chosen.value];
      if (model) take(model);
      else forget(null);
      update();
    });
    precision.addEventListener("change", () => {
      state.precision = precision.value;
      update();
    });

    const summary = make("output", { class: "budget-summary", "aria-live": "polite" });
    const bars = make("tbody");
    const table = make("table", {},
      make("caption", {}, "What the theorems allow (bars: logarithmic scale)"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "bound"),
        make("th", { scope: "col", class: "budget-number" }, "bits"),
        make("th", { scope: "col", class: "budget-number" }, "tokens"))), bars);
    const facts = make("ul", { class: "budget-facts" });
    const chart = make("div", { class: "budget-chart" });
    const checked = make("p", { class: "budget-checked" },
      `Checked before it was drawn: ${data.reference.length} settings agree with the Python functions to ` +
      `${worst === 0 ? "the last digit" : `a relative ${worst.toExponential(0)}`}.`);
    place.append(form, summary, table, chart, facts, checked);

    const link = (theorem) => make("a", { href: LINKS[theorem], class: "budget-theorem" },
      theorem === "Slope" ? "Slope of accessible strings" : theorem);

    function update() {
      const uneven = state.heads !== null && state.heads % state.kv_heads !== 0;
      inputs.heads.number.setCustomValidity(uneven ? "a multiple of the heads with keys and values" : "");
      inputs.heads.number[uneven ? "setAttribute" : "removeAttribute"]("aria-invalid", "true");
      const input = { ...state, heads: uneven ? null : state.heads };
      for (const name of Object.keys(OPTIONAL)) if (!known[name]) input[name] = null;
      if (!known.radius) input.eps = null; // only their ratio counts
      if (known.window) input.attention = "window";
      const found = bounds(input, data.formats);
      const shown = ROWS.filter(([key]) => found.values[key][1] !== null);
      const most = Math.log10(Math.max(...shown.map(([key]) => found.values[key][1])));
      bars.replaceChildren(...shown.map(([key, title, theorem]) => {
        const [, bits, tokens] = found.values[key];
        const width = Math.max(0.5, (100 * Math.log10(Math.max(1, bits))) / Math.max(1, most));
        const least = key === found.smallest;
        const bar = make("span", { class: "budget-bar", "aria-hidden": "true" });
        bar.append(make("span", { style: `width:${width}%`, class: least ? "least" : "" }));
        return make("tr", { "data-bound": key, "data-bits": bits },
          make("th", { scope: "row" }, `${title}${least ? " (smallest for a soft prompt)" : ""} `, link(theorem), bar),
          make("td", { class: "budget-number" }, show(bits)),
          make("td", { class: "budget-number" }, show(tokens)));
      }));
      facts.replaceChildren(...FACTS.filter(([key]) => found.values[key][0] !== null).map(([key, text, theorem]) => {
        const value = found.values[key][0];
        const note = found.vacuous.includes(key) ? " (vacuous: forbids nothing here)" : "";
        const shown = key === "recall" || key === "dilution" ? `${show(100 * value)} %` : show(value);
        return make("li", { "data-bound": key, "data-value": value },
          make("strong", {}, shown), ` ${text}${note} `, link(theorem));
      }));
      if (input.heads === null) {
        facts.append(make("li", {}, uneven ? "H must be a multiple of the heads with keys and values. "
          : "Cache positions that serve the queries exactly: give H, the heads with queries. ", link("Theorem 5")));
      }
      const [, bits, tokens] = found.values[found.smallest];
      const name = ROWS.find(([key]) => key === found.smallest);
      const within = found.smallest === "counting_in_radius" ? `If all vectors stay within r = ${show(state.radius)}: at` : "At";
      summary.textContent = `${within} most ${show(bits)} bits in this soft prompt, or ${show(tokens)} random tokens. ` +
        `Smallest bound: ${name ? name[1].replace("Soft prompt: ", "") : found.smallest}.`;
      draw(found);
    }

    /* Tokens against prompt length: each bound is a straight line through zero; beyond the smallest is forbidden. */
    function draw(found) {
      const width = Math.max(280, Math.min(720, chart.clientWidth || place.clientWidth || 640));
      const height = 260;
      const [left, right, top, bottom] = [64, width < 480 ? 108 : 130, 30, 40];
      const span = 2 * state.prompt_length;
      const names = { counting: "all bits", counting_in_radius: "within radius", resolution: "told apart" };
      const lines = Object.keys(names).concat("hard")
        .filter((key) => found.values[key][2] !== null)
        .map((key) => ({ key, slope: found.values[key][2] / state.prompt_length,
          label: key === "hard" ? "hard prompt" : names[key] }));
      const soft = lines.filter((line) => line.key !== "hard");
      const highest = 1.08 * span * Math.max(...soft.map((line) => line.slope));
      const x = (m) => left + (m / span) * (width - left - right);
      const y = (tokens) => height - bottom - (tokens / highest) * (height - top - bottom);
      const least = span * (found.values[found.smallest][2] / state.prompt_length);
      const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
        "aria-label": `Random tokens against prompt length, straight lines through zero. At ${show(state.prompt_length)} ` +
          lines.map((line) => `vectors ${line.label}: ${show(line.slope * state.prompt_length)} tokens`).join("; ") });
      svg.append(make("path", { class: "forbidden",
        d: `M${x(0)},${y(0)} L${x(span)},${y(least)} L${x(span)},${top} L${x(0)},${top} Z` }));
      svg.append(make("path", { class: "axis", d: `M${left},${top} V${height - bottom} H${width - right}` }));
      for (const part of [0, 0.5, 1]) {
        const m = span * part;
        svg.append(make("text", { x: x(m), y: height - bottom + 16, "text-anchor": "middle" }, show(m)));
        const tick = 10 ** Math.floor(Math.log10(highest / 1.08));
        const value = part === 0 ? 0 : Math.floor((highest / 1.08 / tick) * part * 2) * tick / 2;
        svg.append(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, compact(value)));
      }
      svg.append(make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "prompt vectors m"));
      svg.append(make("text", { x: left - 6, y: 14 }, "random tokens"));
      svg.append(make("text", { x: left + 6, y: top + 14, class: "bound" }, "forbidden"));
      svg.append(make("line", { class: "marker", x1: x(span / 2), x2: x(span / 2), y1: top, y2: height - bottom }));
      const ends = lines.map((line) => ({ ...line, end: y(line.slope * span) })).sort((a, b) => a.end - b.end);
      let previous = top - 6;
      for (const line of ends) line.at = previous = Math.max(line.end + 4, previous + 15);
      let next = height - bottom + 15;
      for (const line of [...ends].reverse()) line.at = next = Math.min(line.at, next - 15);
      for (const line of ends) {
        const kind = line.key === found.smallest ? "least" : line.key === "hard" ? "hard" : "bound";
        svg.append(make("line", { class: kind, x1: x(0), y1: y(0), x2: x(span), y2: line.end }));
        svg.append(make("line", { class: "leader", x1: x(span) + 2, y1: line.end, x2: x(span) + 12, y2: line.at - 4 }));
        svg.append(make("text", { class: kind, x: x(span) + 15, y: line.at }, line.label));
      }
      chart.replaceChildren(svg);
    }

    function compact(value) {
      return value >= 1e5 || (value !== 0 && value < 0.01) ? Number(value.toPrecision(2)).toExponential().replace("+", "") : show(value);
    }

    chosen.value = data.start.model;
    precision.value = data.start.precision;
    for (const [name, { set }] of Object.entries(inputs)) set(state[name] === undefined || state[name] === null ? 4096 : state[name]);
    take(data.models[data.start.model]);
    update();
    let drawn = chart.clientWidth;
    window.addEventListener("resize", () => {
      if (chart.clientWidth === drawn) return;
      drawn = chart.clientWidth;
      update();
    });
  }

  window.promptMemoryBudget = { bounds, worstDifference };

  function start() {
    const place = document.getElementById("budget-calculator");
    const data = document.getElementById("budget-data");
    if (place && data) mount(place, JSON.parse(data.textContent));
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
