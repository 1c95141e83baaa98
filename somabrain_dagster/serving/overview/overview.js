"use strict";

// What comes from the service is put into the page as text alone: names and session ids are what users sent.

const REFRESH_SECONDS = 3;
const EXPERIMENTS_SECONDS = 15; // the sessions of a running one are counted anew each time
const MOST_CHANGES = 1000;
const MEANWHILE = 100;
const SHOWN_FEEDBACK = 20;
const MOST_MARKS = 60;
const KEPT = "somabrain-key";
const USUAL = new Set(["start", "feedback", "diversity"]);
const {weights: WEIGHTS, levels: LEVELS} = JSON.parse(document.getElementById("known").textContent);

const at = (id) => document.getElementById(id);

/** Without a key. `experimentsFrom`: when they are asked for again; `gone`: a tenant that was chosen cannot be shown. */
const NOTHING = {key: null, scope: null, pages: 1, tenant: null, changes: [], experimentsFrom: 0, gone: false};

/** The key and what is shown with it; `away` while the service does not answer. */
const view = {...NOTHING, key: sessionStorage.getItem(KEPT), tenant: named(), away: false};

/** The tenant that the address names. */
function named() {
  return location.hash.slice(1) || null;
}

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the service answered ${status}`);
    this.status = status;
  }
}

/** An answer to a key that was forgotten meanwhile: nobody may see it. */
class Outdated extends Error {}

/** The JSON of a route; a status that is none of those accepted throws `Refused`. */
async function ask(path, parameters = {}, accepted = [200]) {
  const {key} = view;
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value != null));
  const headers = key === null ? {} : {authorization: `Bearer ${key}`};
  const answer = await fetch(`${path}${query.size ? `?${query}` : ""}`, {headers, cache: "no-store"});
  const body = await answer.json();
  if (view.key !== key) throw new Outdated();
  if (!accepted.includes(answer.status)) throw new Refused(answer.status, body);
  return body;
}

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "line", "rect", "text"]);

/** An element with its attributes and what is in it: elements, and texts as texts. */
function element(tag, attributes = {}, ...children) {
  const made = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** Show elements in a place, unless they were made of the same data before: then nothing moves. */
function show(id, data, make) {
  const place = at(id);
  const said = JSON.stringify(data);
  if (place.shown === said) return;
  place.shown = said;
  place.replaceChildren(...[make(data)].flat());
}

/** Empty a place. */
function showNothing(id) {
  at(id).shown = undefined;
  at(id).replaceChildren();
}

const small = (value) => (value > 0 && value < 0.001 ? value.toExponential(1) : digits(value));
const digits = (value, most = 4) => (value == null ? "" : value.toLocaleString("en", {maximumFractionDigits: most}));
const when = (moment) => (moment == null ? "" : moment.slice(0, 19).replace("T", " "));

const NUMBER = "number";

/** A table; a column is its heading and, where it holds numbers, `NUMBER`. */
function table(columns, rows) {
  const line = (tag, cells) => element("tr", {}, ...cells.map((cell, place) => element(tag, {class: columns[place][1]}, cell)));
  return element(
    "table",
    {},
    element("thead", {}, line("th", columns.map(([heading]) => heading))),
    element("tbody", {}, ...rows.map((row) => line("td", row))),
  );
}

// Health

async function refreshHealth() {
  const ready = await ask("readyz", {}, [200, 503]);
  const parts = [["service", ready.ready ? "ready" : ready.draining ? "is about to end" : "not ready"]];
  for (const name of ["postgres", "migrations", "redis", "queue"]) parts.push([name, ready[name]]);
  if (!ready.listening) parts.push(["notifications", "not heard"]);
  show("health", parts, (told) =>
    told.map(([name, state]) => element("span", {class: state === "ok" || state === "ready" ? "good" : "bad"}, `${name} ${state}`)),
  );
}

// The key

const SHOWN = ["names", "name", "summary", "picture", "caption", "levels", "feedback", "promoted", "experiments"];

/** Forget the key and all that was seen with it, and ask for another. */
function askForKey(reason) {
  sessionStorage.removeItem(KEPT);
  Object.assign(view, NOTHING);
  for (const id of SHOWN) showNothing(id);
  at("prefix").value = "";
  history.replaceState(null, "", location.pathname);
  at("room").hidden = at("leave").hidden = true;
  at("door").hidden = false;
  notify(reason);
}

/** Say something above everything; nothing where it is null. */
function notify(reason) {
  at("notice").hidden = !reason;
  at("notice").textContent = reason ?? "";
}

// Tenants

async function refreshTenants() {
  const prefix = at("prefix").value.trim().toLowerCase();
  let tenants = [];
  let after = null;
  for (let page = 0; page < view.pages && (page === 0 || after !== null); page += 1) {
    const answer = await ask("tenants", {prefix, after});
    view.scope = answer.scope;
    tenants = tenants.concat(answer.tenants);
    after = answer.next_after;
  }
  if (view.tenant === null && tenants.length) {
    // Without a choice, the one to whom something happened last.
    view.tenant = tenants.reduce((a, b) => (a.updated_at >= b.updated_at ? a : b)).tenant_id;
  }
  at("more").hidden = after === null;
  show("names", [prefix, ...tenants.map(({tenant_id: id, version}) => [id, version, id === view.tenant])], ([, ...all]) =>
    all.length ? all.map(listed) : element("p", {class: "soft"}, prefix ? `None begins with “${prefix}”.` : NOBODY),
  );
}

const NOBODY =
  "There are no tenants yet. Create one with `somabrain tenant create acme`, or bring the conversations of a hundred " +
  "people with `make demo`.";

function listed([id, version, chosen]) {
  return element(
    "a",
    {href: `#${id}`, title: `${id}: version ${version} of its weights`, "aria-current": chosen ? "true" : null},
    element("span", {}, id),
    element("span", {class: NUMBER}, digits(version)),
  );
}

function choose(tenant) {
  if (tenant === view.tenant) return;
  Object.assign(view, {tenant, changes: [], gone: false});
  refresh();
}

// One tenant

async function refreshTenant() {
  const tenant = view.tenant;
  at("tenant").hidden = tenant === null;
  if (tenant === null) return;
  const [state, said] = await Promise.all([
    ask("context/adaptation/state", {tenant_id: tenant}),
    ask("context/feedback/history", {tenant_id: tenant, limit: SHOWN_FEEDBACK}),
  ]);
  await follow(tenant, state.version);
  if (tenant !== view.tenant) return; // another was chosen meanwhile
  at("name").textContent = tenant;
  at("summary").textContent =
    `${digits(state.version)} change${state.version === 1 ? "" : "s"} of weights · ` +
    `${digits(state.feedback_seq)} feedback event${state.feedback_seq === 1 ? "" : "s"} · ` +
    `learning rate ${digits(state.learning_rate)} · ${state.arm === null ? "sees its own weights" : `sees ${state.arm}`}`;
  const drawn = [tenant, view.changes[0].version, view.changes.at(-1).version];
  show("picture", drawn, () => picture(view.changes));
  show("caption", drawn, caption);
  show("levels", state.neuromodulators, (levels) =>
    Object.entries(LEVELS).map(([name, {low, high}]) =>
      element("label", {}, `${name} `, element("span", {class: "number"}, digits(levels[name])),
        element("meter", {min: low, max: high, value: levels[name]})),
    ),
  );
  show("feedback", said.feedback, (events) =>
    events.length
      ? table(
          [["#", NUMBER], ["landed (UTC)"], ["session"], ["source"], ["utility", NUMBER], ["reward", NUMBER], ["recall", NUMBER], ["arm"]],
          events.map((event) => [
            digits(event.seq), when(event.created_at), event.session_id, event.source,
            digits(event.utility), digits(event.reward), event.recall_id ?? "", event.arm ?? "",
          ]),
        )
      : element("p", {class: "soft"}, "Nothing was said yet, or what was said is older than what is kept."),
  );
}

/** Know the tenant's last changes up to a version, the oldest first; what is known already is not asked again. */
async function follow(tenant, version) {
  const last = view.changes.at(-1)?.version ?? -1;
  if (last === version) return;
  // A log that is shorter than it was comes of a restore; one that grows meanwhile needs a few more than it seems.
  const kept = last < version ? view.changes : [];
  const limit = kept.length ? Math.min(version - last + MEANWHILE, MOST_CHANGES) : MOST_CHANGES;
  const answer = await ask("context/adaptation/history", {tenant_id: tenant, limit});
  if (tenant !== view.tenant) return;
  const fresh = answer.changes.reverse();
  const joins = kept.length > 0 && fresh[0].version <= last + 1;
  view.changes = (joins ? [...kept, ...fresh.filter((change) => change.version > last)] : fresh).slice(-MOST_CHANGES);
}

// The picture: a panel for each weight, its value after each change

const PANEL = {width: 170, height: 100, left: 34, right: 4, top: 4, bottom: 14};

/** Where a version and a value are in a panel. */
function scales(changes, name) {
  const values = changes.map((change) => change.after[name]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [changes[0].version, changes.at(-1).version];
  const across = PANEL.width - PANEL.left - PANEL.right;
  const down = PANEL.height - PANEL.top - PANEL.bottom;
  return {
    low,
    high,
    x: (version) => PANEL.left + (across * (version - first)) / Math.max(last - first, 1),
    y: (value) => PANEL.top + (high === low ? down / 2 : (down * (high - value)) / (high - low)),
  };
}

/** Changes that neither a feedback nor the repetition of what was recalled made. */
const unusual = (changes) => changes.filter((change) => !USUAL.has(change.cause));

function picture(changes) {
  const marks = unusual(changes);
  return WEIGHTS.map(({name, symbol}) => panel(changes, name, symbol, marks.length <= MOST_MARKS ? marks : []));
}

function panel(changes, name, symbol, marks) {
  const {low, high, x, y} = scales(changes, name);
  const now = changes.at(-1).after[name];
  const path = changes
    .map((change, place) => (place ? `H${x(change.version)}V${y(change.after[name])}` : `M${x(change.version)},${y(change.after[name])}`))
    .join("");
  const [top, bottom, right] = [PANEL.top, PANEL.height - PANEL.bottom, PANEL.width - PANEL.right];
  const span = `from ${changes[0].after[name]} at version ${changes[0].version} to ${now} at version ${changes.at(-1).version}`;
  return element(
    "figure",
    {"data-weight": name},
    element("figcaption", {}, `${symbol} ${name}`, element("span", {class: "number value"}, digits(now, 9))),
    element(
      "svg",
      {viewBox: `0 0 ${PANEL.width} ${PANEL.height}`, role: "img", "aria-label": `${name} ${span}`},
      element("rect", {class: "frame", x: PANEL.left, y: top, width: right - PANEL.left, height: bottom - top}),
      element("text", {x: PANEL.left - 3, y: top + 7, "text-anchor": "end"}, digits(high, 3)),
      low === high ? null : element("text", {x: PANEL.left - 3, y: bottom, "text-anchor": "end"}, digits(low, 3)),
      element("text", {x: PANEL.left, y: PANEL.height - 3}, changes[0].version),
      element("text", {x: right, y: PANEL.height - 3, "text-anchor": "end"}, changes.at(-1).version),
      ...marks.map(({version}) => element("line", {class: "mark", x1: x(version), x2: x(version), y1: top, y2: bottom})),
      element("path", {class: low === high ? "path still" : "path", d: changes.length > 1 ? path : `${path}H${right}`}),
      element("line", {class: "cursor", display: "none", y1: top, y2: bottom}),
    ),
  );
}

/** In words what the picture is of. */
function caption() {
  const {version} = view.changes.at(-1);
  const drawn = view.changes.length;
  const span = drawn > version ? "Every version" : `The last ${digits(drawn)} of ${digits(version + 1)} versions`;
  const marks = unusual(view.changes);
  if (!marks.length) return `${span}, from left to right.`;
  const causes = [...new Set(marks.map(cause))].join(", ");
  return `${span}, from left to right. ${marks.length > MOST_MARKS ? `${digits(marks.length)} came of` : "Dotted:"} ${causes}.`;
}

const cause = (change) => change.cause.replaceAll("_", " ");

/** Under the pointer: every weight at that version, and what made it so. */
function read(event) {
  const drawn = event.target.closest?.("svg");
  if (!drawn || !view.changes.length) return;
  const box = drawn.getBoundingClientRect();
  const wanted = ((event.clientX - box.left) / box.width) * PANEL.width;
  const {x} = scales(view.changes, WEIGHTS[0].name);
  const change = view.changes.reduce((a, b) => (Math.abs(x(b.version) - wanted) < Math.abs(x(a.version) - wanted) ? b : a));
  point(change, x(change.version));
  const event_id = change.event_id === null ? "" : `, event ${change.event_id}`;
  at("caption").textContent = `Version ${change.version}, ${when(change.created_at)} UTC: ${cause(change)}${event_id}.`;
}

function unread() {
  if (!view.changes.length) return;
  point(view.changes.at(-1), null);
  at("caption").textContent = caption();
}

/** Tell every weight after a change, and stand the cursor there; at no place where x is null. */
function point(change, x) {
  for (const figure of at("picture").children) {
    figure.querySelector(".value").textContent = digits(change.after[figure.dataset.weight], 9);
    const cursor = figure.querySelector(".cursor");
    cursor.setAttribute("display", x === null ? "none" : "inline");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x ?? 0);
  }
}

// What concerns everybody

async function refreshPromoted() {
  show("promoted", await ask("config/weights"), (promoted) => [
    element("p", {class: "soft"},
      promoted.version === 0
        ? "Nothing was promoted yet: these are the configured starts."
        : `Version ${promoted.version}, ${when(promoted.created_at)}${promoted.experiment_id === null ? ", by an operator" : `, of experiment ${promoted.experiment_id}`}`),
    table([[""], ["weight"], ["promoted", NUMBER]], WEIGHTS.map(({name, symbol}) => [symbol, name, digits(promoted.weights[name], 9)])),
  ]);
}

async function refreshExperiments() {
  if (view.scope !== "operator") {
    show("experiments", "operators", () => element("p", {class: "soft"}, "Experiments span all tenants: an operator's key shows them."));
    return;
  }
  if (Date.now() < view.experimentsFrom) return;
  const {experiments} = await ask("experiments");
  view.experimentsFrom = Date.now() + 1000 * EXPERIMENTS_SECONDS;
  show("experiments", experiments, (all) =>
    all.length ? all.map(experiment) : element("p", {class: "soft"}, "There are none yet: an accepted proposal gets one."),
  );
}

const STATUS = {running: "good", completed: "", stopped: "warn", draft: "soft"};

function experiment(one) {
  const after = one.ended_at ? `${when(one.ended_at)}: ${one.end_reason}` : one.started_at ? `since ${when(one.started_at)}` : "not started";
  const outcome = one.promoted_arm ? `“${one.promoted_arm}” passed every gate; its canary: ${one.canary?.replaceAll("_", " ") ?? "none yet"}` : one.status === "completed" ? "no arm passed every gate" : null;
  return element(
    "article",
    {},
    element("strong", {}, one.experiment_id), " ", element("span", {class: STATUS[one.status]}, one.status),
    element("p", {class: "soft"}, `${after} · ${digits(one.size)} sessions an arm`),
    outcome && element("p", {}, outcome),
    table(
      [["arm"], ["sessions", NUMBER], ["mean", NUMBER], ["p", NUMBER], ["d", NUMBER]],
      one.arms.map((arm) => [arm.name, digits(arm.sessions), digits(arm.mean), small(arm.p), digits(arm.d, 3)]),
    ),
  );
}

// All of it, again and again

let refreshing = false;
let wanted = false;

/** Refresh what is shown; if that is under way, once more when it is done. */
async function refresh() {
  wanted = true;
  if (refreshing) return;
  refreshing = true;
  while (wanted) {
    wanted = false;
    await refreshAll();
  }
  refreshing = false;
}

async function refreshAll() {
  try {
    await refreshHealth();
    if (view.away) notify(null);
    view.away = false;
    if (view.key === null) return;
    await refreshTenants();
    await Promise.all([refreshTenant(), refreshPromoted(), refreshExperiments()]);
    at("door").hidden = true;
    at("room").hidden = at("leave").hidden = false;
    if (!view.gone) notify(null);
  } catch (error) {
    explain(error);
  }
}

const NOT_TO_BE_SEEN = new Set([403, 404, 422]);

/** Say what went wrong, and what to do about it; what is shown stays. */
function explain(error) {
  if (error instanceof Outdated) {
    wanted = true;
  } else if (!(error instanceof Refused)) {
    view.away = true;
    show("health", "away", () => element("span", {class: "bad"}, "does not answer"));
    notify("The service does not answer. What is shown may be old; it is asked again every few seconds.");
  } else if (error.status === 401) {
    askForKey("This key is not valid: it is mistyped or revoked. Paste another; `somabrain key create` makes one.");
  } else if (NOT_TO_BE_SEEN.has(error.status) && view.tenant !== null) {
    Object.assign(view, {tenant: null, changes: [], gone: true});
    history.replaceState(null, "", location.pathname);
    notify(`${error.message}.`);
  } else {
    notify(`Not now: ${error.message}. It is asked again every few seconds.`);
  }
}

at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  at("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(key)) {
    askForKey("This is no key: one begins with sb_ and has no spaces. `somabrain key create` makes one.");
    return;
  }
  view.key = key;
  sessionStorage.setItem(KEPT, key);
  refresh();
});
at("leave").addEventListener("click", () => askForKey(null));
at("more").addEventListener("click", () => {
  view.pages += 1;
  refresh();
});
at("prefix").addEventListener("input", () => {
  view.pages = 1;
  refresh();
});
at("picture").addEventListener("pointermove", read);
at("picture").addEventListener("pointerleave", unread);
addEventListener("hashchange", () => choose(named()));
document.addEventListener("visibilitychange", () => document.hidden || refresh());

at("door").hidden = view.key !== null;
refresh();
setInterval(() => document.hidden || refresh(), REFRESH_SECONDS * 1000);
