// The page of the chat. Every text that came from somebody goes into the page through textContent, never as HTML.
"use strict";

(() => {
  const MESSAGES_KEPT = 300;
  const SILENCE_MS = 12500; // servers announce their people every 4 s: three in a row are missing
  const GROUP_MS = 120000;
  const ROOMS_KEPT = 8;
  const NAMES_KEPT = 200;
  const ANSWER_MS = 5000;

  const $ = (id) => document.getElementById(id);
  const store = safeStorage(() => window.localStorage);
  const session = safeStorage(() => window.sessionStorage);
  const touch = window.matchMedia("(pointer: coarse)");

  let socket = null;
  let me = null; // {id, nickname, room, node, server}, as the server said
  let joinedAt = 0;
  let servers = new Map(); // node -> {server, people, total, at}: who is in our room there, and when we heard it
  const names = new Map(); // node -> what it calls itself; also of those with nobody in our room
  let mesh = null; // what our server knows of the others: {node, server, peers, at}
  let lastMessage = null;
  let unread = 0;
  let atEnd = true; // the newest message is in view, and is to stay so

  // -- Small things ---------------------------------------------------------------------------------------------------

  function safeStorage(open) {
    // A browser may forbid storage; then nothing is remembered.
    const attempt = (act) => { try { return act(open()); } catch { return null; } };
    return {
      get: (key) => attempt((area) => area.getItem(key)),
      set: (key, value) => attempt((area) => area.setItem(key, value)),
      remove: (key) => attempt((area) => area.removeItem(key)),
    };
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // The golden angle puts names that differ in their last letter far apart on the colour wheel.
  function hue(name) {
    let sum = 0;
    for (const character of name) sum = (sum * 31 + character.codePointAt(0)) % 1000003;
    return Math.round((sum * 137.508 + 200) % 360);
  }

  function tint(element, name) {
    element.style.setProperty("--hue", hue(name));
    return element;
  }

  function fillBadge(element, name) {
    element.textContent = name;
    return tint(element, name);
  }

  function fillAvatar(element, nickname) {
    const words = nickname.split(/\s+/);
    const letters = words.length > 1 ? [words[0], words[1]].map((word) => Array.from(word)[0]) : Array.from(nickname).slice(0, 1);
    element.textContent = letters.join("").toUpperCase();
    element.setAttribute("aria-hidden", "true");
    return tint(element, nickname);
  }

  function plural(count, one, many) {
    return `${count} ${count === 1 ? one : many}`;
  }

  function milliseconds(value) {
    return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  }

  function say(element, text) {
    element.textContent = text || "";
    element.hidden = !text;
  }

  // -- The server's clock ---------------------------------------------------------------------------------------------

  const clock = {
    offset: 0,
    best: Infinity,
    now: () => performance.timeOrigin + performance.now(),
    // Of several round trips the shortest says best what the server's clock shows (as NTP does it).
    measure(times) {
      if (!socket.connected || times < 1) return;
      const asked = clock.now();
      socket.timeout(ANSWER_MS).emit("clock", (error, seconds) => {
        if (error || typeof seconds !== "number") return;
        const answered = clock.now();
        if (answered - asked <= clock.best) {
          clock.best = answered - asked;
          clock.offset = seconds * 1000 - (asked + answered) / 2;
        }
        clock.measure(times - 1);
      });
    },
    age: (seconds) => Math.max(0, clock.now() + clock.offset - seconds * 1000),
  };

  // -- Connection -----------------------------------------------------------------------------------------------------

  function start() {
    $("nickname").value = store.get("nickname") || "";
    $("room").value = roomFromAddress() || "lobby";
    if (typeof window.io === "undefined") {
      say($("door-error"), "The Socket.IO client could not be loaded. Put it beside the chat with “make demo”, or connect to the internet.");
      showDoorState("dead", "Not connected");
      return;
    }
    // WebSocket from the start: with long polling, all requests of a page would have to reach the same process.
    socket = window.io({ transports: ["websocket"] });
    socket.on("connect", connected);
    socket.on("disconnect", disconnected);
    socket.on("said", said);
    socket.on("people", peopleChanged);
    socket.on("server", serverNamed);
    socket.on("roll call", rollCall);
    setInterval(askMesh, 3000);
    setInterval(forgetSilent, 1000);
    setInterval(() => { clock.best *= 1.2; clock.measure(1); }, 10000);
  }

  function connected() {
    clock.best = Infinity;
    clock.measure(4);
    document.body.classList.remove("offline");
    say($("banner"), "");
    askMesh();
    if (me) join(me.nickname, me.room);
    else if (session.get("inside") && store.get("nickname")) join(store.get("nickname"), roomFromAddress() || "lobby");
  }

  function disconnected() {
    document.body.classList.add("offline");
    $("status").dataset.state = "dead";
    $("here-words").textContent = "Not connected to";
    const server = mesh ? mesh.server : "the server";
    say($("banner"), `The connection to ${server} is lost. Trying again…`);
    showDoorState("waiting", "Connecting…");
  }

  function showDoorState(state, text, server) {
    const [dot, words] = $("door-server").children;
    dot.dataset.state = state;
    words.replaceChildren(text, ...(server ? [" ", fillBadge(make("span", "badge"), server)] : []));
  }

  function askMesh() {
    if (!socket.connected) return;
    socket.timeout(ANSWER_MS).emit("mesh", (error, state) => {
      if (error || !state) return;
      mesh = { ...state, at: performance.now() };
      $("status").dataset.state = "alive";
      $("here-words").textContent = "Connected to";
      fillBadge($("here-server"), mesh.server);
      $("me-server").textContent = mesh.server;
      showDoorState("alive", "You are on", mesh.server);
      forgetSilent();
      showPeople();
    });
  }

  // -- Joining --------------------------------------------------------------------------------------------------------

  function join(nickname, room) {
    socket.timeout(ANSWER_MS).emit("join", { nickname, room }, (error, answer) => {
      if (error || answer.error) {
        say($(me ? "say-error" : "door-error"), error ? "The server did not answer. Please try again." : answer.error);
        return;
      }
      joined(answer);
    });
  }

  function joined(answer) {
    const newRoom = !me || me.room !== answer.room;
    me = answer;
    serverNamed(me);
    joinedAt = performance.now();
    servers = new Map();
    store.set("nickname", me.nickname);
    session.set("inside", "yes");
    rememberRoom(me.room);
    if (roomFromAddress() !== me.room) window.history.replaceState(null, "", `#${encodeURIComponent(me.room)}`);
    if (newRoom) {
      $("log").replaceChildren();
      $("empty").hidden = false;
      lastMessage = null;
    }
    say($("door-error"), "");
    say($("say-error"), "");
    $("door").hidden = true;
    $("chat").hidden = false;
    $("room-title").textContent = `# ${me.room}`;
    $("text").placeholder = `Message #${me.room}`;
    fillAvatar($("me-avatar"), me.nickname);
    $("me-name").textContent = me.nickname;
    $("me-server").textContent = me.server;
    fillBadge($("here-server"), me.server);
    showTitle();
    showRooms();
    showPeople();
    openSide(false);
    if (!touch.matches) $("text").focus();
  }

  function leave() {
    session.remove("inside");
    window.location.reload();
  }

  function roomFromAddress() {
    try { return decodeURIComponent(window.location.hash.slice(1)); } catch { return ""; }
  }

  function knownRooms() {
    let rooms = [];
    try { rooms = JSON.parse(store.get("rooms")) || []; } catch { /* not ours: forget it */ }
    rooms = Array.isArray(rooms) ? rooms.filter((room) => typeof room === "string") : [];
    return [...new Set(["lobby", "random", ...rooms, ...(me ? [me.room] : [])])];
  }

  function rememberRoom(room) {
    const others = knownRooms().filter((known) => known !== room && known !== "lobby" && known !== "random");
    store.set("rooms", JSON.stringify([...others, room].slice(-ROOMS_KEPT)));
  }

  function showRooms() {
    $("rooms").replaceChildren(...knownRooms().map((room) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.append(make("span", "", "#"), make("span", "", room));
      if (room === me.room) button.setAttribute("aria-current", "page");
      button.addEventListener("click", () => (room === me.room ? openSide(false) : join(me.nickname, room)));
      item.append(button);
      return item;
    }));
  }

  // -- People ---------------------------------------------------------------------------------------------------------

  function serverNamed({ node, server }) {
    if (names.get(node) === server) return;
    if (names.size >= NAMES_KEPT) names.delete(names.keys().next().value);
    names.set(node, server);
    showPeople();
  }

  function peopleChanged(list) {
    if (!me || list.room !== me.room) return;
    serverNamed(list);
    const before = servers.get(list.node);
    servers.set(list.node, { server: list.server, people: list.people, total: list.total, at: performance.now() });
    tellWhoCame(before, list);
    showPeople();
  }

  function tellWhoCame(before, list) {
    // What comes right after we joined are the lists of who was there already.
    if (!before && performance.now() - joinedAt < 3000) return;
    if (list.total > list.people.length) return;
    const old = before ? before.people : [];
    const missing = (from, others) => from.filter((one) => one.id !== me.id && !others.some((other) => other.id === one.id));
    tellNames(missing(list.people, old), "joined on", list.server);
    tellNames(missing(old, list.people), "left, was on", list.server);
  }

  function tellNames(people, what, server) {
    if (!people.length) return;
    const who = people.length > 3 ? plural(people.length, "person", "people") : people.map((person) => person.nickname).join(", ");
    notice(`${who} ${what}`, server);
  }

  // Only one page per server answers, the first in its own server's list, so that a crowd does not answer all at once.
  function rollCall() {
    const ours = me && servers.get(me.node);
    if (ours && ours.people.length && ours.people[0].id === me.id) socket.emit("roll call");
  }

  function forgetSilent() {
    if (!me || !socket.connected) return;
    for (const [node, list] of servers) {
      if (!isGone(node, list)) continue;
      servers.delete(node);
      if (list.total) notice("", list.server, `has gone, and ${plural(list.total, "person", "people")} with it`);
      showPeople();
    }
  }

  function isGone(node, list) {
    if (node === me.node) return false;
    if (performance.now() - list.at > SILENCE_MS) return true;
    const peer = mesh && mesh.peers.find((one) => one.node === node);
    return Boolean(mesh) && mesh.at > list.at + 500 && (!peer || peer.state === "dead");
  }

  function showPeople() {
    if (!me) return;
    const peers = new Map((mesh ? mesh.peers : []).map((peer) => [peer.node, peer]));
    const nodes = new Set([me.node, ...servers.keys(), ...[...peers.values()].filter((peer) => peer.state !== "dead").map((peer) => peer.node)]);
    const rows = [...nodes].map((node) => ({
      node,
      ours: node === me.node,
      name: names.get(node) || node.slice(0, 6),
      list: servers.get(node),
      peer: peers.get(node),
    }));
    rows.sort((a, b) => Number(b.ours) - Number(a.ours) || a.name.localeCompare(b.name, undefined, { numeric: true }));
    const total = rows.reduce((sum, row) => sum + (row.list ? row.list.total : 0), 0);
    $("total").textContent = total || "";
    $("room-summary").textContent = total ? `${plural(total, "person", "people")} · ${plural(nodes.size, "server", "servers")}` : "";
    $("servers").replaceChildren(...rows.map(serverRow));
  }

  function serverRow({ ours, name, list, peer }) {
    const section = make("section", "server");
    const head = make("div", "server-head");
    const dot = make("span", "dot");
    dot.dataset.state = ours ? "alive" : peer ? peer.state : "waiting";
    const trip = peer && typeof peer.roundTripSeconds === "number" ? milliseconds(peer.roundTripSeconds * 1000) : "";
    const side = make("small", "", ours ? "this page" : trip);
    side.title = ours ? "The server that this page is connected to" : "Round trip between the two servers";
    head.append(dot, fillBadge(make("span", "badge"), name), side);
    section.append(head);
    const people = list ? list.people : [];
    if (!people.length) section.append(make("p", "nobody", "nobody in this room"));
    const rows = make("ul");
    for (const person of people) {
      const item = make("li");
      item.append(fillAvatar(make("span", "avatar"), person.nickname), make("span", "name", person.nickname));
      if (person.id === me.id) item.append(make("span", "you", "you"));
      rows.append(item);
    }
    if (list && list.total > people.length) rows.append(make("li", "nobody", `and ${list.total - people.length} more`));
    section.append(rows);
    return section;
  }

  // -- Messages -------------------------------------------------------------------------------------------------------

  function said(message) {
    if (!me || message.room !== me.room) return;
    const took = clock.age(message.sentAt);
    const own = message.id === me.id;
    const now = Date.now();
    const follows = lastMessage && lastMessage.id === message.id && now - lastMessage.at < GROUP_MS;
    lastMessage = { id: message.id, at: now };

    const item = make("li", `message${own ? " own" : ""}${follows ? " follows" : ""}`);
    const by = make("div", "by");
    const time = make("time", "", new Date(now).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
    time.dateTime = new Date(now).toISOString();
    by.append(make("strong", "", message.nickname), time);
    const path = make("div", "path");
    path.append(tint(make("span", "hop", message.server), message.server));
    if (message.node !== me.node) path.append("→", tint(make("span", "hop", me.server), me.server));
    path.append(make("span", "time", milliseconds(took)));
    path.title = message.node === me.node
      ? `Sent on ${message.server}, the server of this page; under way for ${milliseconds(took)}`
      : `Sent on ${message.server}, received through ${me.server}; under way for ${milliseconds(took)}`;
    item.append(fillAvatar(make("span", "avatar"), message.nickname), by, make("div", "bubble", message.text), path);
    append(item, own);

    if (document.hidden && !own) {
      unread += 1;
      showTitle();
    }
  }

  function notice(before, server, after = "") {
    lastMessage = null;
    const item = make("li", "notice");
    item.append(make("span", "", before), fillBadge(make("span", "badge"), server), make("span", "", after));
    append(item, false);
  }

  function append(item, jump) {
    $("empty").hidden = true;
    $("log").append(item);
    while ($("log").childElementCount > MESSAGES_KEPT) $("log").firstElementChild.remove();
    if (atEnd || jump) toEnd();
    else $("newer").hidden = false;
  }

  function toEnd() {
    $("scroller").scrollTop = $("scroller").scrollHeight;
    $("newer").hidden = true;
  }

  function send() {
    const text = $("text").value.trim();
    if (!text) return;
    if (!socket.connected) {
      say($("say-error"), "Not connected at the moment; your text is kept.");
      return;
    }
    $("text").value = "";
    fitText();
    socket.timeout(ANSWER_MS).emit("say", text, (error, answer) => {
      const problem = error ? "The server did not answer. Please try again." : answer.error;
      say($("say-error"), problem);
      if (problem && !$("text").value) $("text").value = text;
      fitText();
    });
  }

  // -- The page -------------------------------------------------------------------------------------------------------

  function fitText() {
    const text = $("text");
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight, 160)}px`;
    $("send").disabled = !text.value.trim();
  }

  function showTitle() {
    document.title = `${unread ? `(${unread}) ` : ""}${me ? `#${me.room} · ${me.server}` : "Mesh chat"}`;
  }

  function openSide(open) {
    $("side").classList.toggle("open", open);
    $("shade").hidden = !open;
  }

  $("join").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!socket || !socket.connected) say($("door-error"), "Not connected yet. Please try again in a moment.");
    else join($("nickname").value, $("room").value.replace(/^#+/, ""));
  });
  $("new-room").addEventListener("submit", (event) => {
    event.preventDefault();
    const room = $("new-room-name").value.replace(/^#+/, "").trim();
    $("new-room-name").value = "";
    if (room) join(me.nickname, room);
  });
  $("say").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("text").addEventListener("input", fitText);
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
    event.preventDefault();
    send();
  });
  $("scroller").addEventListener("scroll", () => {
    const scroller = $("scroller");
    atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
    if (atEnd) $("newer").hidden = true;
  });
  // A keyboard that opens, or a line that appears, must not hide the newest message.
  new ResizeObserver(() => { if (atEnd) toEnd(); }).observe($("scroller"));
  $("newer").addEventListener("click", toEnd);
  $("open-side").addEventListener("click", () => openSide(true));
  $("close-side").addEventListener("click", () => openSide(false));
  $("shade").addEventListener("click", () => openSide(false));
  $("leave").addEventListener("click", leave);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") openSide(false); });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    unread = 0;
    showTitle();
  });
  window.addEventListener("hashchange", () => {
    const room = roomFromAddress();
    if (me && room && room !== me.room) join(me.nickname, room);
  });

  start();
})();
