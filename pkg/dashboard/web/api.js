// The relay's API over one WebSocket: calls, and feeds that come back by themselves after a cut.

// Failure is an answer that is an error. Code is its HTTP status, 0 if the relay was not reached.
export class Failure extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

const callTime = 90_000; // ms that a call may take; looking for cameras is the slowest
const silence = 15_000; // ms without a message after which the relay is asked whether it is there
const firstWait = 500; // ms before the first attempt to come back; doubled for each one more
const longestWait = 15_000;
const marker = "culvert-signed-in"; // that there may be a cookie

// ask sends one request over HTTP, for what has to work before there is a WebSocket.
async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(20_000),
    });
  } catch {
    throw new Failure(0, "the relay does not answer");
  }
  const text = await response.text();
  let answer = {};
  try {
    answer = text ? JSON.parse(text) : {};
  } catch {
    // It is no answer of ours: a proxy's page, perhaps.
  }
  if (!response.ok) throw new Failure(response.status, answer.errorText || answer.error || `the relay answered ${response.status}`);
  return answer;
}

const ranks = { viewer: 1, operator: 2, admin: 3 };

// Api tells of changes by events: "state" when it went online or offline, "me" when the caller's name or role is another.
export class Api extends EventTarget {
  state = "starting"; // starting, online, offline, signed-out
  me = null; // {name, role, expires}
  ended = false; // signed out by the relay, and not by whoever was signed in
  retryAt = 0; // when the next attempt is due, of an offline one
  #socket = null;
  #id = 0;
  #calls = new Map(); // by id: {resolve, reject, timer}
  #feeds = new Map(); // by id: feed
  #all = new Set(); // feeds, also those that wait for a connection
  #wait = firstWait;
  #timer = 0;
  #heard = 0;
  #attempt = 0; // counts attempts, so that a late end of an old one is known as such

  constructor() {
    super();
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retry();
    });
    setInterval(() => this.#watch(), 5000);
  }

  // may reports whether the caller's role allows what needs the role.
  may(role) {
    return this.me !== null && (ranks[this.me.role] || 0) >= ranks[role];
  }

  // begin goes on where a sign-in in this browser has left off. Without one the relay is not asked: it would note that
  // somebody without a token was refused.
  begin() {
    if (localStorage.getItem(marker)) this.connect();
    else this.#become("signed-out");
  }

  async login(token) {
    await ask("/api/login", { token });
    localStorage.setItem(marker, "1");
    this.#wait = firstWait;
    await this.connect();
  }

  async logout() {
    try {
      await ask("/api/logout", {});
    } catch {
      // The cookie ends with its token, or after its hours.
    }
    localStorage.removeItem(marker);
    this.ended = false;
    this.#attempt++;
    this.#drop();
    this.#become("signed-out");
  }

  // retry comes back at once instead of waiting for its turn.
  retry() {
    if (this.state !== "offline") return;
    this.#wait = firstWait;
    this.connect();
  }

  // connect asks who the caller is, then opens the WebSocket: a browser does not tell why one was refused.
  async connect() {
    clearTimeout(this.#timer);
    const attempt = ++this.#attempt;
    this.retryAt = 0;
    if (this.state === "offline") this.dispatchEvent(new Event("state"));
    let me;
    try {
      me = await ask("/api/operators/Me", {});
    } catch (e) {
      if (attempt !== this.#attempt) return;
      if (e.code === 401 || e.code === 403) {
        localStorage.removeItem(marker);
        this.#drop();
        this.ended = true;
        this.#become("signed-out");
      } else this.#lost();
      return;
    }
    if (attempt !== this.#attempt) return;
    const other = !this.me || this.me.name !== me.name || this.me.role !== me.role;
    this.me = me;
    if (other) this.dispatchEvent(new Event("me"));
    const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/api/ws");
    this.#socket = socket;
    const slow = setTimeout(() => socket.readyState === WebSocket.CONNECTING && this.#socket === socket && this.#lost(), 15_000);
    socket.onopen = () => {
      if (this.#socket !== socket) return socket.close();
      clearTimeout(slow);
      this.#heard = Date.now();
      this.#wait = firstWait;
      this.#become("online");
      // Some were begun just now, by those who were told.
      for (const feed of this.#all) if (!this.#feeds.has(feed.id)) this.#begin(feed);
    };
    socket.onmessage = (m) => this.#socket === socket && this.#take(m.data);
    socket.onclose = () => {
      clearTimeout(slow);
      if (this.#socket === socket) this.#lost();
    };
  }

  // call has a method called and returns its answer.
  call(name, input = {}, time = callTime) {
    return new Promise((resolve, reject) => {
      if (this.state !== "online") return reject(new Failure(0, "the relay is not connected: try again in a moment"));
      const id = ++this.#id;
      const timer = setTimeout(() => {
        this.#calls.delete(id);
        this.#send({ id, cancel: true });
        reject(new Failure(0, "the relay has not answered in time"));
      }, time);
      this.#calls.set(id, { resolve, reject, timer });
      this.#send({ id, call: name, in: input });
    });
  }

  // feed has a method push to take, now and after each cut, until the func that it returns is called. began is called
  // before the first event of each connection, failed when the relay refuses.
  feed(name, input, take, { began, failed } = {}) {
    const feed = { name, input, take, began, failed, id: 0, timer: 0 };
    this.#all.add(feed);
    if (this.state === "online") this.#begin(feed);
    return () => {
      this.#all.delete(feed);
      clearTimeout(feed.timer);
      if (this.#feeds.delete(feed.id)) this.#send({ id: feed.id, cancel: true });
    };
  }

  #begin(feed) {
    clearTimeout(feed.timer);
    feed.id = ++this.#id;
    this.#feeds.set(feed.id, feed);
    if (feed.began) feed.began();
    this.#send({ id: feed.id, call: feed.name, in: feed.input });
  }

  #send(message) {
    if (this.#socket && this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #take(data) {
    this.#heard = Date.now();
    let m;
    try {
      m = JSON.parse(data);
    } catch {
      return;
    }
    const feed = this.#feeds.get(m.id);
    if (feed) {
      if ("event" in m) return feed.take(m.event);
      this.#feeds.delete(m.id);
      if (m.error) {
        if (feed.failed) feed.failed(new Failure(m.error.errorCode, m.error.errorText));
      } else if (this.#all.has(feed)) {
        feed.timer = setTimeout(() => this.state === "online" && this.#begin(feed), 2000); // ended by the relay: a reload
      }
      return;
    }
    const call = this.#calls.get(m.id);
    if (!call) return; // it was given up
    this.#calls.delete(m.id);
    clearTimeout(call.timer);
    if (m.error) call.reject(new Failure(m.error.errorCode, m.error.errorText));
    else call.resolve(m.result);
  }

  // watch finds out about a connection that is dead and does not know it.
  async #watch() {
    const socket = this.#socket;
    if (this.state !== "online" || Date.now() - this.#heard < silence) return;
    try {
      await this.call("operators/Me", {}, 8000);
    } catch (e) {
      if (this.#socket !== socket) return;
      if (e.code === 0) this.#lost();
      else if (e.code === 401) this.connect();
    }
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#feeds.clear();
    for (const { reject, timer } of this.#calls.values()) {
      clearTimeout(timer);
      reject(new Failure(0, "the connection to the relay was lost"));
    }
    this.#calls.clear();
    if (socket) socket.close();
  }

  #lost() {
    this.#drop();
    const wait = this.#wait * (0.75 + Math.random() / 2);
    this.#wait = Math.min(longestWait, this.#wait * 2);
    this.retryAt = Date.now() + wait;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.connect(), wait);
    this.#become("offline");
  }

  #become(state) {
    if (state === "signed-out") this.me = null;
    const changed = this.state !== state;
    this.state = state;
    if (changed || state === "offline") this.dispatchEvent(new Event("state"));
  }
}
