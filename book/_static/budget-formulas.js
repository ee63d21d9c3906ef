/* The formulas of the budget calculator: bounds, and least lengths.

   Plain JavaScript without a page: budget.js draws it.  The formulas are those of src/prompt_memory/bounds; the page
   carries a table of settings with the results of the Python functions, and nothing is shown unless this script agrees
   with all of them (`worstDifference`). */
(function () {
  "use strict";

  const SOFT = ["counting", "counting_in_radius", "entropy"]; // what bounds a soft prompt

  /* log2, exact for powers of two in every browser. */
  function log2(x) {
    const power = Math.round(Math.log2(x));
    return 2 ** power === x ? power : Math.log2(x);
  }

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
    return log2(2 * Math.min(index, largest) + 1);
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
    if (bits >= n * log2(q)) return 1;
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

  const given = (input, name) => (input[name] === undefined ? null : input[name]);

  /* (heads, d_k, d_v) of the layers that are listed, or of one layer; and the numbers cached a position. */
  function caches(input) {
    const listed = given(input, "cache");
    const layers = listed || [[input.kv_heads, input.key_dim, input.value_dim]];
    const stored = layers.reduce((sum, [heads, keys, values]) => sum + heads * (keys + values), 0);
    const compressed = given(input, "compressed");
    const cached = compressed !== null ? input.layers * compressed : listed ? stored : input.layers * stored;
    return { layers, cached };
  }

  /* Random tokens a vector of strings told apart at eps; null where radius or eps is not given. */
  function slopeOf(input) {
    const eps = given(input, "eps");
    return eps === null ? null : (input.width * Math.log1p((2 * input.radius) / eps)) / Math.log(input.vocabulary);
  }

  /* The bits of a prompt of m positions, by bound: `prompt_bounds` of Python; null where a bound is not covered. */
  function promptBits(input, m, formats) {
    const a = input;
    const form = formats[a.precision];
    const [radius, margin] = [given(a, "radius"), given(a, "margin")];
    const perToken = log2(a.vocabulary);
    const limit = form.counted_to === null ? Infinity : form.counted_to;
    const counted = form.exponent !== null && radius !== null && radius <= limit;
    const slope = slopeOf(a);
    const entropy = () => (a.width * m * Math.log1p((radius * a.lipschitz) / (margin / 2))) / Math.LN2;
    return {
      counting: form.bits * a.width * m,
      counting_in_radius: counted ? a.width * m * floatBits(radius, form.exponent, form.fraction) : null,
      resolution: slope === null ? null : m * slope * perToken,
      entropy: margin === null ? null : entropy(),
      prefix: given(a, "compressed") === null ? form.bits * caches(a).cached * m : null,
      hard: m * perToken,
    };
  }

  /* What `budget` of Python computes: {values: {key: [value, bits, tokens]}, smallest, vacuous}. */
  function bounds(input, formats) {
    const a = input;
    const m = input.prompt_length;
    const [length, context, window, cap] = ["length", "context", "window", "logit_cap"].map((name) => given(a, name));
    let range = given(a, "logit_range");
    if (range === null && cap !== null) range = 2 * cap;
    const perToken = log2(a.vocabulary);
    const { layers, cached } = caches(a);
    const attention = given(a, "attention") || "full";
    const values = {};
    const vacuous = [];
    const put = (key, value, empty) => {
      values[key] = [value, null, null];
      if (empty) vacuous.push(key);
    };
    for (const [key, bits] of Object.entries(promptBits(a, m, formats))) {
      values[key] = [bits, bits, bits === null ? null : bits / perToken];
    }
    let smallest = "counting";
    for (const key of SOFT) {
      if (values[key][1] !== null && values[key][1] < values[smallest][1]) smallest = key;
    }
    const B = values[smallest][1];
    const ambient = a.width - (a.norm === "layer" ? 1 : 0);
    put("dimension", m * (a.causal || a.layers === 1 ? Math.min(ambient, cached) : ambient));
    put("prefix_dimension", given(a, "compressed") === null ? m * cached : null);
    put("accessible_slope", slopeOf(a));
    const longest = a.causal ? (B + 1) / perToken : null;
    put("accessible_length", longest, longest !== null && context !== null && longest > context);
    const fraction = length === null || !a.causal ? null : 2 ** Math.min(0, B - length * perToken);
    put("accessible_fraction", fraction, fraction === 1);
    const recall = length === null ? null : recallCeiling(B, length, a.vocabulary);
    put("recall", recall, recall === 1);
    const tooMany = (count) => count !== null && context !== null && count >= context;
    const written = given(a, "written") !== null ? a.written : a.layers * a.heads * a.value_dim;
    const exact = (a.causal || a.layers === 1) && attention !== "other" && a.heads !== null ? input.queries * written : null;
    put("exact_compression", exact, tooMany(exact));
    let moments = null;
    if (["learned", "rotary"].includes(a.positions) && cap === null && attention === "full") {
      const k = input.degree;
      const count = ([heads, keys, values]) => heads * (binomial(keys + k, k) * (1 + values) - 1) + 1;
      moments = Math.max(...layers.map(count));
    }
    put("moments", moments, tooMany(moments));
    const seen = window === null ? context : context === null ? window : Math.min(window, context);
    const covered = seen !== null && (attention === "full" || (attention === "window" && window !== null));
    put("dilution", covered && range !== null ? 1 / (1 + (seen - 1) * Math.exp(-range)) : null);
    return { values, smallest, vacuous: vacuous.sort() };
  }

  /* The bits of a question: random labels of q values for n facts, or n random tokens. */
  function askedBits(question, vocabulary) {
    return "tokens" in question ? question.tokens * log2(vocabulary) : question.facts * log2(question.labels);
  }

  /* The least m >= 1 with held(m) >= bits, where held(m) is m·held(1) up to rounding; infinite if nothing is held. */
  function least(held, bits) {
    const one = held(1);
    if (!one) return one === null ? null : Infinity;
    if (bits / one > 2 ** 52) return bits / one < 2 ** 1000 ? Math.ceil(bits / one) : Infinity; // about: no whole numbers there
    let [low, high] = [1, 2 * Math.ceil(bits / one) + 1];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (held(middle) < bits) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /* What `least_length` of Python computes: {bits, lengths: {key: m}, one: {key: bits a vector}, largest}. */
  function needed(input, question, formats) {
    const bits = askedBits(question, input.vocabulary);
    const one = promptBits(input, 1, formats);
    const lengths = {};
    for (const key of Object.keys(one)) lengths[key] = least((m) => promptBits(input, m, formats)[key], bits);
    let largest = "counting";
    for (const key of SOFT) if (lengths[key] !== null && lengths[key] > lengths[largest]) largest = key;
    return { bits, lengths, one, largest };
  }

  // --- agreement with Python ----------------------------------------------------------------------------------------

  /* The relative difference of two numbers; infinite if only one of them is there. */
  function difference(x, y) {
    if ((x === null) !== (y === null)) return Infinity;
    return y === null || x === y ? 0 : Math.abs(x - y) / Math.abs(y); // NaN stays NaN
  }

  const sameKeys = (one, other) => Object.keys(one).sort().join() === Object.keys(other).sort().join();

  /* The largest relative difference from a table of results; infinite if anything else differs. */
  function worstDifference(reference, formats) {
    let worst = 0;
    for (const { input, bounds: wanted, question, needed: least } of reference) {
      const found = bounds(input, formats);
      if (found.smallest !== wanted.smallest) return Infinity;
      if (found.vacuous.join() !== wanted.vacuous.join()) return Infinity;
      if (!sameKeys(found.values, wanted.values)) return Infinity;
      for (const [key, numbers] of Object.entries(wanted.values)) {
        for (let i = 0; i < 3; i += 1) worst = Math.max(worst, difference(found.values[key][i], numbers[i]));
      }
      const back = needed(input, question, formats);
      if (back.largest !== least.largest || !sameKeys(back.lengths, least.lengths)) return Infinity;
      for (const [key, m] of Object.entries(least.lengths)) {
        if (back.lengths[key] !== (m === "inf" ? Infinity : m)) return Infinity; // whole numbers: none may differ
      }
      worst = Math.max(worst, difference(back.bits, least.bits));
    }
    return worst;
  }

  Object.assign((window.promptMemoryBudget ||= {}), { bounds, needed, worstDifference });
})();
