// Every text that came from somebody goes into the page through textContent, never as HTML.
"use strict";

(() => {
  const ANSWER_MS = 5000;

  const $ = (id) => document.getElementById(id);

  let socket = null;
  let server = ""; // the uid of the one that this page is connected to
  let beyond = 0; // how many people the server did not name when we came
  const people = new Map(); // name -> {name, mood, since, tabs: {server: how many}}

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // The golden angle puts names that differ in their last letter far apart on the colour wheel.
  function tint(element, name) {
    let sum = 0;
    for (const character of name) sum = (sum * 31 + character.codePointAt(0)) % 1000003;
    element.style.setProperty("--hue", Math.round((sum * 137.508 + 200) % 360));
    return element;
  }

  function plural(count, one, many) {
    return `${count} ${count === 1 ? one : many}`;
  }

  function say(element, text) {
    element.textContent = text || "";
    element.hidden = !text;
  }

  // -- Connection -----------------------------------------------------------------------------------------------------

  function enter(name) {
    if (typeof window.io === "undefined") {
      say($("error"), "The Socket.IO client could not be loaded: run “make vendor” once, or connect to the internet.");
      return;
    }
    // WebSocket from the start: with long polling, all requests of a page would have to reach the same process.
    socket = window.io({ transports: ["websocket"], auth: { name }, forceNew: true });
    socket.on("everybody", everybody);
    socket.on("present", (person) => { people.set(person.name, person); show(); });
    socket.on("absent", (gone) => { people.delete(gone); show(); });
    socket.on("connect_error", (error) => {
      // Refused by the server; when it could not be reached the client tries again by itself.
      if (!socket.active) leave();
      say($("error"), error.message);
    });
    socket.on("disconnect", () => say($("error"), "The connection was lost. Trying again…"));
  }

  function everybody(state) {
    server = state.server;
    people.clear();
    for (const person of state.people) people.set(person.name, person);
    beyond = state.total - state.people.length;
    say($("error"), "");
    $("enter").hidden = true;
    $("inside").hidden = false;
    $("you").textContent = state.you;
    document.querySelector("#moods input").checked = true;
    show();
  }

  function leave() {
    if (socket) socket.disconnect();
    socket = null;
    people.clear();
    $("enter").hidden = false;
    $("inside").hidden = true;
    $("status").textContent = "On every server, in every tab.";
    say($("error"), "");
  }

  // -- The list -------------------------------------------------------------------------------------------------------

  function show() {
    const sorted = [...people.values()].sort((a, b) => a.since - b.since);
    $("people").replaceChildren(...sorted.map(row));
    const online = plural(sorted.length + beyond, "user is", "users are");
    $("status").textContent = `${online} online. This tab is connected to server ${server.slice(0, 6)}.`;
  }

  function row(person) {
    const element = make("li", "person");
    element.dataset.mood = person.mood;
    const servers = Object.entries(person.tabs);
    const tabs = servers.reduce((sum, [, count]) => sum + count, 0);
    const words = make("div");
    words.append(make("strong", "", person.name), make("span", "muted", `${person.mood} · ${plural(tabs, "tab", "tabs")}`));
    const badges = make("span", "badges");
    for (const [node, count] of servers) {
      badges.append(tint(make("span", "badge", `${count} × ${node.slice(0, 6)}`), node));
    }
    const avatar = tint(make("span", "avatar", Array.from(person.name)[0].toUpperCase()), person.name);
    avatar.setAttribute("aria-hidden", "true");
    element.append(avatar, words, badges);
    return element;
  }

  // -- The page -------------------------------------------------------------------------------------------------------

  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    leave();
    enter($("name").value);
  });
  $("moods").addEventListener("change", (event) => {
    socket.timeout(ANSWER_MS).emit("mood", event.target.value, (error, answer) => {
      say($("error"), error ? "The server did not answer." : answer.error);
    });
  });
  $("leave").addEventListener("click", leave);
})();
