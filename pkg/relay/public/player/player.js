'use strict';
// Plays live.mp4 by Media Source Extensions, or shows snapshot.jpg once a second where a browser cannot.
(() => {
  const base = document.currentScript.src;
  const at = (name) => {
    const url = new URL(name, base);
    url.username = url.password = ''; // those in the address of the page, which fetch does not take
    return url.href;
  };
  const video = document.querySelector('video');
  const image = document.querySelector('img');
  const status = document.querySelector('[role=status]');

  const maxDelay = 2;      // seconds behind the newest picture, before it jumps there
  const kept = 20;         // seconds that stay in the buffer
  const silence = 15000;   // ms without a byte until it connects again
  const maxWait = 15000;   // ms between two attempts

  let wait = 1000;         // ms until the next attempt
  let broken = 0;          // attempts in a row that the browser could not decode
  let wake = () => {};     // ends the wait

  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const once = (target, good, bad) => new Promise((resolve, reject) => {
    const stop = new AbortController();
    target.addEventListener(good, () => { stop.abort(); resolve(); }, { signal: stop.signal });
    if (bad) target.addEventListener(bad, () => { stop.abort(); reject(new Error(bad)); }, { signal: stop.signal });
  });
  const pause = (ms) => new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => { clearTimeout(timer); resolve(); };
  });

  // why is what to say of an answer that is no stream.
  async function why(res) {
    switch (res.status) {
      case 401: case 403: case 429: return (await res.text()).trim();
      case 404: return 'There is no camera here.';
      default: return 'The camera is away. Trying again …';
    }
  }

  // follow keeps the picture close to the newest one, and out of the holes that dropped pictures leave.
  function follow() {
    const b = video.buffered;
    if (b.length === 0 || video.seeking) return;
    const start = b.start(b.length - 1), end = b.end(b.length - 1);
    const now = video.currentTime, delay = end - now;
    if (video.paused && now > 0) return;
    if (now < start || delay > maxDelay) {
      video.currentTime = Math.max(start, end - 0.3);
    } else if (delay > 0.6) {
      video.playbackRate = 1.1;
    } else if (delay < 0.35) {
      video.playbackRate = 1;
    }
  }

  async function change(buffer, what) {
    what();
    if (buffer.updating) await once(buffer, 'updateend');
  }

  async function trim(buffer) {
    const b = buffer.buffered;
    if (b.length > 0 && b.end(b.length - 1) - b.start(0) > 1.5 * kept) {
      await change(buffer, () => buffer.remove(0, b.end(b.length - 1) - kept));
    }
  }

  async function append(buffer, bytes) {
    try {
      await change(buffer, () => buffer.appendBuffer(bytes));
    } catch (err) {
      if (err.name !== 'QuotaExceededError' || buffer.buffered.length === 0) throw err;
      const end = buffer.buffered.end(buffer.buffered.length - 1);
      await change(buffer, () => buffer.remove(0, Math.max(0.1, end - 3)));
      await change(buffer, () => buffer.appendBuffer(bytes));
    }
    await trim(buffer);
  }

  // play plays until the stream ends. It returns false if the browser cannot play what there is.
  async function play() {
    const stop = new AbortController();
    const stopped = new Promise((_, reject) => stop.signal.addEventListener('abort', () => reject(new Error('stopped'))));
    stopped.catch(() => {});
    const unless = (promise) => Promise.race([promise, stopped]);
    let timer = setTimeout(() => stop.abort(), 2 * silence);
    let poster;
    try {
      const res = await fetch(at('live.mp4'), { cache: 'no-store', signal: stop.signal });
      if (res.status === 415) return false;
      if (!res.ok) {
        say(await why(res));
        return true;
      }
      const type = res.headers.get('Content-Type');
      const Source = window.MediaSource || window.ManagedMediaSource;
      if (!Source || !Source.isTypeSupported(type)) return false;
      if (!window.MediaSource) video.disableRemotePlayback = true;

      const source = new Source();
      const opened = once(source, 'sourceopen');
      const url = URL.createObjectURL(source);
      video.src = url;
      await unless(opened);
      URL.revokeObjectURL(url);
      const buffer = source.addSourceBuffer(type);

      const failed = () => stop.abort();
      video.addEventListener('error', failed, { signal: stop.signal });
      video.addEventListener('playing', () => { clearTimeout(poster); say(''); }, { signal: stop.signal });
      poster = setTimeout(() => showPoster(stop.signal), 1500);

      const reader = res.body.getReader();
      const began = Date.now();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(timer);
        timer = setTimeout(() => stop.abort(), silence);
        await unless(append(buffer, value));
        follow();
        if (video.paused && video.currentTime === 0 && video.readyState > 2) {
          video.play().catch(() => say('Press play to see the camera.'));
        }
        if (Date.now() - began > 10000) { wait = 1000; broken = 0; }
      }
      say('The camera is away. Trying again …');
    } catch {
      say(navigator.onLine ? 'The camera is away. Trying again …' : 'There is no network. Trying again …');
      if (video.error && ++broken >= 3) return false;
    } finally {
      clearTimeout(timer);
      clearTimeout(poster);
      stop.abort();
    }
    return true;
  }

  async function snapshot(signal) {
    const res = await fetch(at('snapshot.jpg'), { cache: 'no-store', signal });
    return { res, blob: res.ok ? await res.blob() : null };
  }

  // showPoster shows what there is of a camera whose stream is slow to come.
  async function showPoster(signal) {
    try {
      const { blob } = await snapshot(signal);
      if (blob) {
        URL.revokeObjectURL(video.poster);
        video.poster = URL.createObjectURL(blob);
      }
    } catch { /* there is none */ }
  }

  // pictures shows snapshots, once a second.
  async function pictures() {
    for (let last = ''; ;) {
      try {
        const { res, blob } = await snapshot();
        if (blob) {
          const url = URL.createObjectURL(blob);
          image.src = url;
          await image.decode();
          video.hidden = true;
          image.hidden = false;
          if (last) URL.revokeObjectURL(last);
          last = url;
          wait = 1000;
          say('');
        } else if (res.status === 404) {
          say('This browser cannot play what the camera sends, and there are no snapshots.');
          wait = maxWait;
        } else {
          say(await why(res));
          wait = Math.min(2 * wait, maxWait);
        }
      } catch {
        say('The camera is away. Trying again …');
        wait = Math.min(2 * wait, maxWait);
      }
      await pause(wait);
    }
  }

  async function run() {
    while (await play()) {
      await pause(wait);
      wait = Math.min(2 * wait, maxWait);
    }
    wait = 1000;
    await pictures();
  }

  window.addEventListener('online', () => wake());
  document.addEventListener('visibilitychange', () => { if (!document.hidden) { wake(); follow(); } });
  video.addEventListener('play', follow);
  run();
})();
