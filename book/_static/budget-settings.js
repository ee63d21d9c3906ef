/* What a reader of the budget calculator can set: names and ranges, the models, the address, a pasted config.json.

   Plain JavaScript without a page: budget.js draws it.  One flat object of settings says everything that a reader
   chose; null where something is not known. */
(function () {
  "use strict";

  // --- what a reader can set ----------------------------------------------------------------------------------------

  const OWN = "your own";
  const ASK = [ // value, text
    ["prompt", "What can m vectors hold?"],
    ["facts", "How many vectors for n facts?"],
    ["tokens", "How many vectors for n random tokens?"],
  ];
  const CONTROLS = [ // name, label, least, most, whole number; the last item: of which questions, if not of all
    ["Question", [
      ["prompt_length", "vectors m", 1, 10000, true, ["prompt"]],
      ["facts", "facts n, with random labels", 1, 1e9, true, ["facts"]],
      ["labels", "values q that a label may have", 2, 1000000, true, ["facts"]],
      ["tokens", "random tokens n", 1, 1e9, true, ["tokens"]],
    ]],
    ["Model", [
      ["width", "width d", 8, 65536, true],
      ["layers", "layers L", 1, 256, true],
      ["heads", "heads with queries H", 1, 512, true],
      ["kv_heads", "heads with keys and values", 1, 512, true],
      ["key_dim", "dimension of a key", 4, 1024, true],
      ["value_dim", "dimension of a value", 4, 1024, true],
      ["vocabulary", "vocabulary V", 2, 1000000, true],
      ["context", "context, tokens", 16, 16777216, true],
      ["window", "window, tokens: some layers see no more", 16, 1048576, true],
      ["logit_cap", "cap c: softmax logits lie in [−c, c]", 0.1, 1000, false],
    ]],
    ["What a configuration does not say", [
      ["radius", "radius r of the vectors", 0.01, 10000, false],
      ["eps", "distance ε at which strings are told apart", 1e-8, 10000, false],
      ["logit_range", "range Δ of softmax logits", 0.1, 100, false, ["prompt"]],
    ]],
    ["More about the prompt", [
      ["length", "random tokens to recall", 1, 1000000, true],
      ["queries", "queries to compress for", 1, 1000, true],
      ["degree", "degree k of the moments", 0, 8, true],
    ], ["prompt"]],
  ];
  const NUMBERS = Object.fromEntries(CONTROLS.flatMap(([, controls]) => controls).map((spec) => [spec[0], spec]));
  // What may be left out: a box says whether it is known.
  const OPTIONAL = { context: "context known", window: "sliding window", logit_cap: "logits are capped",
    radius: "radius known", eps: "distance ε known", logit_range: "logit range known" };
  const CHOICES = [ // name, label, [value, text]
    ["norm", "norm", [["none", "RMSNorm, others"], ["layer", "LayerNorm only"]]],
    ["positions", "positions", [["rotary", "rotary or learned"], ["alibi", "ALiBi"], ["unknown", "another kind"]]],
    ["causal", "tokens see", [["true", "earlier tokens only"], ["false", "all tokens"]]],
  ];
  const SHAPE = [...CONTROLS[1][1].map(([name]) => name), ...CHOICES.map(([name]) => name)];

  // --- settings -----------------------------------------------------------------------------------------------------

  const isPublished = (data, model) => Object.hasOwn(data.models, model);

  /* Settings with everything that belongs to a published model; what no configuration says is known of none. */
  function withModel(settings, model, data) {
    const shape = data.models[model];
    const taken = Object.fromEntries(SHAPE.map((name) => [name, shape[name]]));
    taken.norm = shape.norm === "layer" ? "layer" : "none";
    taken.positions = shape.positions === "learned" ? "rotary" : shape.positions;
    return { ...settings, ...taken, model, radius: data.known.includes("radius") ? shape.radius : null, eps: null, logit_range: null };
  }

  /* Settings of a reader's own model: what was known of the published one and is not on the page, or not known of every
     model, is forgotten, except what was just set. */
  function withoutModel(settings, just) {
    const forgotten = { norm: "none", positions: "unknown", heads: null, window: null, logit_cap: null,
      radius: null, eps: null, logit_range: null }; // with "none" all d coordinates count: always an upper bound
    const kept = just === null ? {} : { [just]: settings[just] };
    return { ...settings, ...forgotten, ...kept, model: OWN };
  }

  function startOf(data) {
    return withModel({ ...data.start }, data.start.model, data);
  }

  /* The settings from which the address tells the difference. */
  function baseOf(model, data) {
    return model === OWN ? withoutModel(startOf(data), null) : withModel(startOf(data), model, data);
  }

  // --- the address --------------------------------------------------------------------------------------------------

  const MARK = "#budget-calculator";

  /* Every setting that differs from the start, as the part of an address behind #; "" at the start. */
  function toAddress(settings, data) {
    const base = baseOf(settings.model, data);
    const told = new URLSearchParams();
    if (settings.model !== data.start.model) told.set("model", settings.model);
    for (const [name, value] of Object.entries(settings)) {
      if (name !== "model" && value !== base[name]) told.set(name, value === null ? "" : String(value));
    }
    return told.size ? `${MARK}?${told}` : "";
  }

  function parseNumber(name, text) {
    const [, , least, most, whole] = NUMBERS[name];
    const value = Number(text);
    if (text === "") return Object.hasOwn(OPTIONAL, name) || name === "heads" ? null : undefined;
    return text.trim() === text && value >= least && value <= most && (!whole || Number.isInteger(value)) ? value : undefined;
  }

  function parseSetting(name, text, data) {
    const among = (values) => (values.includes(text) ? text : undefined);
    if (Object.hasOwn(NUMBERS, name)) return parseNumber(name, text);
    if (name === "ask") return among(ASK.map(([value]) => value));
    if (name === "precision") return among(Object.keys(data.formats));
    const choice = CHOICES.find(([other]) => other === name);
    const value = choice && among(choice[2].map(([one]) => one));
    return name === "causal" && value ? value === "true" : value;
  }

  /* The settings that an address tells: null if it is not about the calculator; {wrong} if one cannot be read. */
  function fromAddress(hash, data) {
    if (!hash.startsWith(MARK)) return null;
    const rest = hash.slice(MARK.length);
    if (rest !== "" && !rest.startsWith("?")) return { wrong: rest };
    const told = [...new URLSearchParams(rest.slice(1))];
    const names = told.map(([name]) => name);
    const model = told.find(([name]) => name === "model")?.[1] ?? data.start.model;
    if (model !== OWN && !isPublished(data, model)) return { wrong: `model=${model}` };
    const settings = baseOf(model, data);
    for (const [name, text] of told) {
      const value = name === "model" ? model : parseSetting(name, text, data);
      const twice = names.indexOf(name) !== names.lastIndexOf(name);
      const ofAnother = model !== OWN && SHAPE.includes(name); // a published model with another shape is none
      if (value === undefined || twice || ofAnother) return { wrong: `${name}=${text}` };
      settings[name] = value;
    }
    return settings;
  }

  // --- a config.json ------------------------------------------------------------------------------------------------

  const refuse = (sentence) => { throw new Error(sentence); };
  const isEmpty = (value) => value === null || value === false || value === 0 || value === "" || value === -1 ||
    (typeof value === "object" && Object.keys(value).length === 0);
  const typeOf = (value) => (value === null ? "null" : Array.isArray(value) ? "list" : typeof value);
  const isCount = (value) => Number.isSafeInteger(value) && value >= 1;

  function parse(text) {
    let config;
    try {
      config = JSON.parse(text);
    } catch (error) {
      refuse(`This is no JSON: ${error.message}.`);
    }
    if (config === null || typeof config !== "object" || Array.isArray(config)) {
      refuse("A configuration is a JSON object of fields.");
    }
    return config;
  }

  function isOdd(field, value, family, rules) {
    if (Object.hasOwn(rules.must, field)) return value !== rules.must[field];
    if (rules.not_softmax.some((start) => field.startsWith(start))) return true;
    if (Object.hasOwn(family.usual, field)) return JSON.stringify(family.usual[field]) !== JSON.stringify(value);
    if (family.read.includes(field) || Object.values(rules.names).flat().includes(field) || isEmpty(value)) return false;
    const name = field.toLowerCase();
    return new RegExp(rules.cache_name).test(name) && !new RegExp(rules.harmless).test(name);
  }

  /* Refuses what changes the cache, the order of reading or the width, and is not one of the fields that are read. */
  function refuseOddFields(config, family, rules) {
    for (const field of ["architectures", "layer_types"]) {
      if (![undefined, null].includes(config[field]) && !Array.isArray(config[field])) {
        refuse(`The field ${field} must be a list of names.`);
      }
    }
    const written = config.architectures || [];
    for (const name of written) {
      if (!new RegExp(rules.writes).test(name) || new RegExp(rules.sees_later).test(name)) {
        refuse(`The field architectures names ${name}, which is not read here as a network that writes token by token.`);
      }
    }
    for (const [field, value] of Object.entries(config)) {
      const types = Object.hasOwn(rules.types, field) ? rules.types[field] : null;
      if (types && !types.includes(typeOf(value))) {
        refuse(`The field ${field} must not be ${JSON.stringify(value)}.`);
      }
      if (value !== null && isOdd(field, value, family, rules)) {
        refuse(`The field ${field} may change what is counted and is not read here.`);
      }
    }
    const position = config.alibi ? "alibi" : config.position_embedding_type === "alibi" ? "position_embedding_type" : null;
    if (position && family.positions !== "alibi") {
      refuse(`The field ${position} is not read here for the family ${config.model_type}.`);
    }
  }

  /* A size by any of its names; the default of the family where the file has none.  `left` collects what it left out. */
  function size(config, kind, family, rules, left) {
    const { names, usual } = family.sizes[kind];
    const there = rules.names[kind].filter((name) => config[name] !== undefined);
    for (const name of there) {
      if (!names.includes(name)) refuse(`The field ${name} is not one that the family ${config.model_type} has.`);
      if (config[name] === null && usual === null) continue;
      if (!isCount(config[name])) {
        refuse(`The field ${name} must be an integer >= 1, not ${JSON.stringify(config[name])}.`);
      }
      if (config[name] !== config[there[0]]) refuse(`The fields ${there[0]} and ${name} differ.`);
    }
    if (there.length && config[there[0]] !== null) return config[there[0]];
    if (usual !== null) left.push(`${names[0]} = ${usual}`);
    return usual;
  }

  /* The smallest window of a layer, or null if every layer sees everything. */
  function windowOf(config, family, layers) {
    const { rule, usual, first } = family.window;
    if (rule === "none") return null;
    const own = config.sliding_window !== undefined;
    const window = own ? config.sliding_window : usual;
    if (window !== null && !isCount(window)) {
      refuse(`The field sliding_window must be an integer >= 1 or null, not ${JSON.stringify(window)}.`);
    }
    const kinds = config.layer_types || null;
    if (kinds !== null && rule === "all") {
      refuse("The field layer_types may change what is counted and is not read here.");
    }
    if (kinds !== null && !(Array.isArray(kinds) && kinds.length === layers &&
        kinds.every((kind) => ["full_attention", "sliding_attention"].includes(kind)))) {
      refuse("The field layer_types must name full_attention or sliding_attention for each layer.");
    }
    const used = config.use_sliding_window === undefined ? false : config.use_sliding_window;
    if (rule === "optional" && typeof used !== "boolean") refuse("The field use_sliding_window must be true or false.");
    if (kinds !== null) {
      if (!kinds.includes("sliding_attention")) return null;
      if (window === null) refuse("The field sliding_window is missing, and layer_types names layers with a window.");
      if (rule === "optional" && !used) {
        refuse("The field layer_types names layers with a window, and use_sliding_window is not true.");
      }
      return window;
    }
    if (rule === "some" && window === null) refuse("The field sliding_window must be an integer >= 1 for this family.");
    if (rule !== "optional") return window;
    if (!used || window === null) return null;
    const full = config.max_window_layers === undefined ? first : config.max_window_layers;
    if (!(Number.isSafeInteger(full) && full >= 0)) {
      refuse("The field max_window_layers must be an integer >= 0 if windows are used.");
    }
    return full < layers ? window : null;
  }

  /* The number format of the weights; null if the file names none. */
  function formatOf(config, rules) {
    const field = ["dtype", "torch_dtype"].find((name) => config[name] !== undefined && config[name] !== null);
    if (!field) return null;
    const name = String(config[field]).toLowerCase().replace("torch.", "");
    return rules.formats[name] || refuse(`The field ${field} names ${JSON.stringify(config[field])}, which is no number format of this page.`);
  }

  /* The settings in the text of a config.json: what `architectures.read` of Python makes of it, for the families of the
     table `rules`.  {family, settings, precision, left}; an Error with one sentence that names the field otherwise. */
  function readFields(text, rules) {
    const config = parse(text);
    const type = config.model_type;
    if (![undefined, null].includes(config.text_config)) {
      refuse("The field text_config belongs to a network with several parts; paste what it holds alone.");
    }
    const family = typeof type === "string" && Object.hasOwn(rules.families, type) ? rules.families[type] : null;
    if (!family) {
      refuse(type === undefined ? "The field model_type is missing, so the family is not known."
        : `The field model_type names ${JSON.stringify(type)}, a family that is not read here; the command prompt-memory budget reads more.`);
    }
    refuseOddFields(config, family, rules);
    const left = [];
    const [width, layers, heads, vocabulary] = ["hidden", "layers", "heads", "vocabulary"].map(
      (kind) => size(config, kind, family, rules, left));
    if (vocabulary < 2) refuse("The field vocab_size must be at least 2: one token carries no information.");
    for (const field of ["word_embed_proj_dim", "embedding_size"]) {
      if (![undefined, null, width].includes(config[field])) {
        refuse(`The field ${field} is not the width, which is not read here.`);
      }
    }
    const multi = config.multi_query === undefined ? family.multi_query : config.multi_query;
    if (family.multi_query !== null && typeof multi !== "boolean") {
      refuse("The field multi_query must be true or false.");
    }
    const told = size(config, "kv", family, rules, left);
    const kv_heads = family.multi_query !== null ? (multi ? 1 : heads) : told === null ? heads : told;
    if (told !== null && told !== kv_heads) {
      refuse(`The field ${family.sizes.kv.names[0]} does not agree with multi_query.`);
    }
    if (heads % kv_heads) {
      refuse(`${heads} heads cannot share ${kv_heads} heads of keys and values evenly (the field ${family.sizes.heads.names[0]}).`);
    }
    const head = size(config, "head", family, rules, left);
    if (head === null && width % heads) {
      refuse(`${width} is not divisible by ${heads} heads, and there is no field head_dim.`);
    }
    const dimension = head === null ? width / heads : head;
    if (family.positions === "rotary" && dimension < 8) {
      refuse(`Heads of dimension ${dimension} (the field ${head === null ? family.sizes.heads.names[0] : "head_dim"}) are too small to be read here.`);
    }
    const named = rules.names.context.find((name) => config[name] !== undefined && config[name] !== null);
    if (named && !isCount(config[named])) {
      refuse(`The field ${named} must be an integer >= 1, not ${JSON.stringify(config[named])}.`);
    }
    const cap = config.attn_logit_softcapping === undefined ? family.logit_cap : config.attn_logit_softcapping;
    if (cap !== null && !(typeof cap === "number" && cap > 0)) {
      refuse("The field attn_logit_softcapping must be a number > 0.");
    }
    if (!named && family.context !== null) left.push(`context = ${family.context}`);
    const settings = {
      width, layers, heads, kv_heads, key_dim: dimension, value_dim: dimension, vocabulary,
      context: named ? config[named] : family.context, window: windowOf(config, family, layers), logit_cap: cap,
      norm: family.norm, positions: family.positions, causal: true,
    };
    return { family: type, settings, precision: formatOf(config, rules), left };
  }

  /* Settings of the text of a config.json, in the ranges of this page; an Error with one sentence otherwise. */
  function readConfig(text, settings, data) {
    const found = readFields(text, data.config);
    for (const [name, value] of Object.entries(found.settings)) {
      if (!(name in NUMBERS) || value === null) continue;
      const [, label, least, most] = NUMBERS[name];
      if (!(value >= least && value <= most)) {
        refuse(`The configuration has ${value} for ${label}; this page takes ${least} to ${most}.`);
      }
    }
    const { positions } = found.settings;
    const taken = { ...found.settings, positions: positions === "learned" ? "rotary" : positions };
    const left = found.left.length ? ` Not in the file, so the defaults of the family: ${found.left.join(", ")}.` : "";
    const format = found.precision ? ` Number format ${found.precision}.` : "";
    return {
      settings: { ...withoutModel(settings, null), ...taken, precision: found.precision || settings.precision },
      answer: `Read as ${found.family}.${format}${left}`,
    };
  }

  Object.assign((window.promptMemoryBudget ||= {}), {
    OWN, ASK, CONTROLS, OPTIONAL, CHOICES, SHAPE, MARK,
    isPublished, withModel, withoutModel, startOf, parseNumber, toAddress, fromAddress, readFields, readConfig,
  });
})();
