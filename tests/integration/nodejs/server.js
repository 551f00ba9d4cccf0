// A Socket.IO server of Node.js in a mesh, for tests: the official socket.io and the cluster base class of its adapter,
// over a small transport that speaks what docs/nodejs.md describes. With {"role": "discovery"}, a discovery server.
//
//     node server.js '{"discovery": "ws://...", "uid": "...", "token": ""}'
//
// It prints one line of JSON when it serves, and does what POST /control asks for. Whatever would end a real server ends
// this one: nothing is caught on the way of a message.
"use strict";

const http = require("http");
const { randomBytes } = require("crypto");
const { Server } = require("socket.io");
const { ClusterAdapterWithHeartbeat } = require("socket.io-adapter");
const { WebSocket, WebSocketServer } = require("ws");
const { encode, decode } = require("@msgpack/msgpack");

const HELLO = 0;
const MESSAGE = 1;
const REDIAL_MS = 300;

// ---------------------------------------------------------------- discovery

function discoveryServer(options) {
  const members = new Map();
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const tell = () => {
    const update = encode({ type: "update", servers: [...members.values()] });
    for (const ws of members.keys()) ws.send(update);
  };
  server.on("connection", (ws) => {
    ws.on("message", (data) => {
      const { type, serverId, address, token } = decode(data);
      if (options.token && token !== options.token) return ws.close(4401, "unauthorized");
      if (type === "register") members.set(ws, { serverId, address });
      tell();
    });
    ws.on("close", () => members.delete(ws) && tell());
    ws.on("error", () => {});
  });
  const pings = setInterval(() => server.clients.forEach((ws) => ws.ping()), 1000);
  pings.unref();
  server.on("listening", () => console.log(JSON.stringify({ http_port: server.address().port })));
}

// ---------------------------------------------------------------- the transport

class Transport {
  constructor(options) {
    this.uid = options.uid;
    this.token = options.token;
    this.peers = new Map(); // uid -> WebSocket
    this.roster = new Map(); // uid -> address
    this.adapters = new Map(); // namespace -> adapter
    this.pings = 0; // from peers
    this.refused = 0; // by discovery
    this.server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
    this.server.on("connection", (ws) => this.accept(ws));
  }

  get address() {
    return `ws://127.0.0.1:${this.server.address().port}`;
  }

  hello() {
    const said = { uid: this.uid, address: this.address };
    return this.token ? { ...said, token: this.token } : said;
  }

  join(discovery) {
    const ws = (this.discovery = new WebSocket(discovery));
    const said = { type: "register", serverId: this.uid, address: this.address };
    ws.on("open", () => ws.send(encode(this.token ? { ...said, token: this.token } : said)));
    ws.on("message", (data) => {
      const message = decode(data);
      if (message.type === "update") this.update(message.servers);
    });
    ws.on("close", (code) => {
      if (code === 4401) this.refused++;
      if (!this.stopped) setTimeout(() => this.join(discovery), REDIAL_MS);
    });
    ws.on("error", () => {});
  }

  update(servers) {
    this.roster = new Map(servers.map(({ serverId, address }) => [serverId, address]));
    for (const [uid, ws] of this.peers) if (!this.roster.has(uid)) ws.close(1000, "gone");
    for (const uid of this.roster.keys()) this.dial(uid);
  }

  dial(uid) {
    if (this.stopped || uid <= this.uid || this.peers.has(uid) || !this.roster.has(uid)) return;
    const ws = new WebSocket(this.roster.get(uid));
    this.peers.set(uid, ws);
    ws.on("open", () => ws.send(Buffer.concat([Buffer.from([HELLO]), encode(this.hello())])));
    this.read(ws, uid);
  }

  accept(ws) {
    ws.once("message", (data) => {
      const hello = data[0] === HELLO && decode(data.subarray(1));
      if (!hello || hello.uid === this.uid || (this.token && hello.token !== this.token)) return ws.close(1002, "no");
      if (this.peers.has(hello.uid)) return ws.close(1002, "there is one");
      this.peers.set(hello.uid, ws);
      this.read(ws, hello.uid);
    });
    ws.on("error", () => {});
  }

  read(ws, uid) {
    ws.on("message", (data) => {
      if (data[0] !== MESSAGE) return;
      const message = decode(data.subarray(1));
      const adapter = this.adapters.get(message.nsp);
      if (!adapter) return;
      if ([8, 10, 11, 12].includes(message.type)) adapter.onResponse(message);
      else adapter.onMessage(message);
    });
    ws.on("ping", () => this.pings++);
    ws.on("error", () => {});
    ws.on("close", () => {
      if (this.peers.get(uid) !== ws) return;
      this.peers.delete(uid);
      setTimeout(() => this.dial(uid), REDIAL_MS);
    });
  }

  send(uid, message) {
    const ws = this.peers.get(uid);
    if (ws && ws.readyState === WebSocket.OPEN) ws.send(Buffer.concat([Buffer.from([MESSAGE]), encode(message)]));
  }

  stop() {
    this.stopped = true;
    this.discovery.close(1000, "client-closing");
    for (const ws of this.peers.values()) ws.close(1000, "transport-closed");
    this.server.close();
  }
}

class MeshAdapter extends ClusterAdapterWithHeartbeat {
  constructor(nsp, transport, options) {
    super(nsp, options);
    this.uid = transport.uid;
    this.transport = transport;
    transport.adapters.set(nsp.name, this);
  }

  async doPublish(message) {
    for (const uid of this.transport.peers.keys()) this.transport.send(uid, message);
    return "";
  }

  async doPublishResponse(uid, response) {
    this.transport.send(uid, response);
  }
}

// ---------------------------------------------------------------- what tests ask for

// JSON that knows bytes, and whatever else JavaScript has.
const packed = (value) => JSON.stringify(value, (_key, item) => {
  if (item && item.type === "Buffer") return { $bytes: Buffer.from(item.data).toString("base64") };
  if (item instanceof Uint8Array) return { $bytes: Buffer.from(item).toString("base64") };
  return item;
});

const unpacked = (text) => JSON.parse(text, (_key, item) => {
  if (!item || typeof item !== "object") return item;
  if ("$bytes" in item) return Buffer.from(item.$bytes, "base64");
  if ("$date" in item) return new Date(item.$date);
  if ("$number" in item) return Number(item.$number);
  if ("$undefined" in item) return null;
  if ("$map" in item) return new Map(item.$map);
  return item;
});

class Control {
  constructor(io, transport) {
    this.io = io;
    this.transport = transport;
    this.heard = [];
  }

  selected({ namespace = "/", rooms = [], except = [], timeout, volatile } = {}) {
    let to = this.io.of(namespace);
    for (const room of rooms) to = to.to(room);
    for (const room of except) to = to.except(room);
    if (volatile) to = to.volatile;
    return timeout ? to.timeout(timeout) : to;
  }

  state() {
    const { uid, peers, pings, refused } = this.transport;
    return { uid, links: [...peers.keys()], pings, refused };
  }

  heardEvents() {
    return this.heard;
  }

  serverCount({ namespace = "/" }) {
    return this.io.of(namespace).adapter.serverCount();
  }

  emit(event, ...args) {
    const options = args.pop();
    this.selected(options).emit(event, ...args);
  }

  // What only JavaScript can say.
  emitUndefined(event, options) {
    this.selected(options).emit(event, undefined, { a: undefined, b: 1 });
  }

  async emitWithAck(event, ...args) {
    const options = args.pop();
    return this.selected({ timeout: 3000, ...options }).emitWithAck(event, ...args);
  }

  async fetchSockets(options) {
    const sockets = await this.selected(options).fetchSockets();
    return sockets.map(({ id, handshake, rooms, data }) => ({ id, handshake, rooms: [...rooms], data }));
  }

  async useSockets(options) {
    for (const socket of await this.selected(options).fetchSockets()) {
      socket.join("used");
      socket.emit("used", socket.id);
    }
  }

  setData(sid, data) {
    this.io.sockets.sockets.get(sid).data = data;
  }

  socketsJoin(rooms, options) {
    this.selected(options).socketsJoin(rooms);
  }

  socketsLeave(rooms, options) {
    this.selected(options).socketsLeave(rooms);
  }

  disconnectSockets(close, options) {
    this.selected(options).disconnectSockets(close);
  }

  serverSideEmit(event, ...args) {
    const { namespace = "/" } = args.pop();
    this.io.of(namespace).serverSideEmit(event, ...args);
  }

  serverSideEmitWithAck(event, ...args) {
    const { namespace = "/" } = args.pop();
    return this.io.of(namespace).serverSideEmitWithAck(event, ...args);
  }

  rooms(sid) {
    return [...this.io.sockets.sockets.get(sid).rooms];
  }

  // The adapters say goodbye; the links stay open.
  closeAdapters() {
    for (const adapter of this.transport.adapters.values()) adapter.close();
  }

  stopTransport() {
    this.transport.stop();
  }
}

function main(options) {
  if (options.role === "discovery") return discoveryServer(options);
  const transport = new Transport({ uid: options.uid || randomBytes(8).toString("hex"), token: options.token });
  const server = http.createServer();
  const io = new Server(server);
  const control = new Control(io, transport);
  io.adapter(function (nsp) {
    return new MeshAdapter(nsp, transport, options.heartbeat);
  });
  for (const namespace of options.namespaces || ["/"]) {
    const nsp = io.of(namespace);
    nsp.on("connection", (socket) => {
      socket.on("enter", (room, done) => {
        socket.join(room);
        done(room);
      });
      socket.on("relay", (event, ...args) => socket.broadcast.emit(event, ...args));
    });
    nsp.on("note", (...args) => control.heard.push(args));
    nsp.on("add", (a, b, answer) => answer(a + b));
    nsp.on("when", (answer) => answer({ at: new Date(0), raw: Buffer.from([1, 2]), nan: NaN }));
  }
  server.on("request", (request, response) => {
    if (request.url !== "/control") return;
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", async () => {
      const { operation, arguments: args, options } = unpacked(Buffer.concat(pieces));
      let answer;
      try {
        const value = await control[operation](...args, options);
        answer = { value: value === undefined ? null : value };
      } catch (error) {
        answer = { error: error.name, text: String(error.message) };
      }
      response.end(packed(answer));
    });
  });
  transport.server.on("listening", () => {
    transport.join(options.discovery);
    server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({
      http_port: server.address().port, ws_port: transport.server.address().port, uid: transport.uid,
    })));
  });
  process.on("SIGTERM", () => process.exit(0));
  process.stdin.on("end", () => process.exit(0)).resume();
}

main(JSON.parse(process.argv[2]));
