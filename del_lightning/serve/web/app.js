// The page: type, see what would leave the device and what an attacker makes of it, send, read the answer.

import { Mechanism, encodeFrame, readEvents } from "./del.js";

const PAUSE = 200; // milliseconds without a key press before a preview is drawn
const PER_BREATH = 8; // tokens attacked between two chances to repaint

const at = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let mechanism; // tables of the bundle
let tokenizer;
let limits; // of the server
let virtualTokens; // of its soft prompt for this bundle
let shown = 0; // number of the table on screen: older ones stop filling in their guesses
let sending = false;

async function fetched(path, headers = {}) {
  const response = await fetch(path, { headers });
  if (response.status === 401) throw new Error("The server does not accept this key.");
  if (!response.ok) throw new Error(`${path} cannot be loaded (status ${response.status})`);
  return response;
}

const json = async (path, headers) => (await fetched(path, headers)).json();
const bytes = async (path) => (await fetched(path)).arrayBuffer();

async function loadTokenizer() {
  const { Tokenizer } = await import("./vendor/tokenizers.js").catch(() => {
    throw new Error("The tokenizer library is not installed beside this page: run `make web` where the server is built.");
  });
  return new Tokenizer(await json("bundle/tokenizer.json"), {});
}

async function load() {
  const [manifest, info] = await Promise.all([json("bundle/manifest.json"), json("v1/info")]);
  const served = info.settings.find(({ setting }) => setting === manifest.setting);
  if (!served) {
    throw new Error(`The server does not serve the setting ${manifest.setting} of its own bundle.`);
  }
  const [library, ...tables] = await Promise.all([
    loadTokenizer(),
    bytes("bundle/thresholds.npy"),
    bytes("bundle/prior.npy"),
  ]);
  [tokenizer, limits, mechanism] = [library, info.limits, new Mechanism(manifest, ...tables)];
  virtualTokens = served.virtual_tokens;
  at("max-tokens").max = limits.new_tokens;
  at("max-tokens").value = Math.min(at("max-tokens").value, limits.new_tokens);
  at("model").textContent = `${manifest.model_name} · ${manifest.label} · ${manifest.bits} bits × ${manifest.dim} a token`;
  at("statement").textContent = manifest.statement;
  at("key-label").hidden = !info.key_needed;
  at("key").required = info.key_needed;
  at("prompt").disabled = false;
  at("prompt").focus();
}

const encode = (text) => (text ? tokenizer.encode(text, { add_special_tokens: false }).ids : []);
const piece = (id) => tokenizer.decode([id], { skip_special_tokens: false, clean_up_tokenization_spaces: false });

// All tokens that this browser has sent: for one mechanism, the bundle's budget is a number of tokens.
const account = () => `del-lightning tokens sent at ${mechanism.manifest.setting}`;
const spent = () => Number(localStorage.getItem(account()) ?? 0);

/** Why these tokens cannot be sent, or an empty text; the form itself bounds what else is asked for. */
function obstacle(ids) {
  const { budget_tokens: budget, prefix_ids: prefix } = mechanism.manifest;
  const whole = virtualTokens + prefix.length + ids.length + Number(at("max-tokens").value);
  if (ids.length > limits.prompt_tokens) return `The server takes at most ${limits.prompt_tokens} tokens.`;
  if (whole > limits.context) return `Prompt and answer must have at most ${limits.context} tokens together, not ${whole}.`;
  if (spent() + ids.length > budget) return `The privacy budget of ${budget} tokens is used up: ${spent()} were sent.`;
  return "";
}

function complain(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

const hex = (codes) => Array.from(codes, (code) => code.toString(16).padStart(mechanism.manifest.bits > 4 ? 2 : 1, "0"));

/** Fill the table with tokens and their codes, then, bit by bit, with the attacker's guesses. */
async function show(ids, codes) {
  const table = ++shown;
  const { dim } = mechanism.manifest;
  const rows = ids.map((id, i) => {
    const row = document.createElement("tr");
    for (const text of [piece(id), hex(codes.subarray(i * dim, (i + 1) * dim)).join(" "), "…"]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  at("tokens").replaceChildren(...rows);
  let recovered = 0;
  for (let i = 0; i < ids.length; i++) {
    if (i % PER_BREATH === 0) await sleep(0);
    if (table !== shown) return;
    const guess = mechanism.invert(codes.subarray(i * dim, (i + 1) * dim));
    recovered += guess === ids[i];
    rows[i].cells[2].textContent = piece(guess);
    rows[i].cells[2].className = guess === ids[i] ? "right" : "wrong";
    at("phase").dataset.recovered = `This attack names ${recovered} of ${i + 1} tokens.`;
    at("phase").textContent = `${at("phase").dataset.what} ${at("phase").dataset.recovered}`;
  }
  at("phase").dataset.finished = String(table);
}

function summarize(text, ids, frame) {
  const { budget_tokens: budget, budget_epsilon: epsilon, delta } = mechanism.manifest;
  const size = `${ids.length} tokens · ${frame.length} bytes to send (the text has ${new TextEncoder().encode(text).length})`;
  const guarantee = `epsilon ${epsilon.toPrecision(4)}, delta ${delta}`;
  at("summary").textContent = `${size} · ${spent()} of ${budget} tokens of the privacy budget used (${guarantee})`;
}

function rehearse() {
  const text = at("prompt").value;
  const ids = encode(text);
  const possible = obstacle(ids);
  at("send").disabled = sending || !ids.length || Boolean(possible);
  complain(possible);
  at("phase").dataset.what = ids.length ? "A rehearsal, drawn like the request itself and never sent." : "";
  at("phase").textContent = at("phase").dataset.what;
  const codes = mechanism.release(ids);
  summarize(text, ids, encodeFrame(mechanism.manifest, codes));
  show(ids, codes);
}

const keyHeader = () => (at("key").value ? { Authorization: `Bearer ${at("key").value}` } : {});

/** The answer's pieces; an error of any kind is thrown with a message for the user. */
async function* generate(frame) {
  const query = new URLSearchParams({ max_tokens: at("max-tokens").value, temperature: at("temperature").value });
  const headers = { "Content-Type": "application/octet-stream", ...keyHeader() };
  const response = await fetch(`v1/generate?${query}`, { method: "POST", headers, body: frame });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(`The server refused (status ${response.status}): ${answer?.error?.message ?? "no reason given"}`);
  }
  for await (const [event, data] of readEvents(response.body)) {
    const content = JSON.parse(data);
    if (event === "token") yield content.text;
    if (event === "error") throw new Error(`The server failed: ${content.message}`);
    if (event === "done") return;
  }
  throw new Error("The server broke off.");
}

async function send() {
  const text = at("prompt").value;
  const ids = encode(text);
  if (sending || !ids.length) return;
  sending = true;
  at("send").disabled = true;
  complain("");
  at("answer").textContent = "";
  try {
    if (at("key").value) ({ limits } = await json("v1/info", keyHeader())); // a key may have limits of its own
    const possible = obstacle(ids);
    if (possible) throw new Error(possible);
    localStorage.setItem(account(), String(spent() + ids.length)); // written down before anything leaves
    const codes = mechanism.release(ids);
    const frame = encodeFrame(mechanism.manifest, codes);
    at("phase").dataset.what = "Sent: these codes have left the device.";
    summarize(text, ids, frame);
    show(ids, codes);
    for await (const part of generate(frame)) at("answer").textContent += part;
  } catch (error) {
    complain(error instanceof TypeError ? "The connection to the server broke off." : error.message);
  } finally {
    sending = false;
    at("send").disabled = Boolean(obstacle(encode(at("prompt").value)));
    at("answer").dataset.finished = "true";
  }
}

let timer;
for (const id of ["prompt", "max-tokens"]) {
  at(id).addEventListener("input", () => {
    clearTimeout(timer);
    at("send").disabled = true;
    timer = setTimeout(rehearse, PAUSE);
  });
}
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

load().catch((error) => {
  at("model").textContent = "";
  complain(error.message);
});
