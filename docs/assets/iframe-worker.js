// Browsers refuse workers to pages opened from a disk; the search of the theme needs one. There, a hidden frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.frame = frame;
      window.addEventListener("message", (event) => {
        if (event.source !== frame.contentWindow) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      const load =
        "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {" +
        " const script = document.createElement('script'); script.src = url; script.onload = done; script.onerror = failed;" +
        " document.body.append(script); })), Promise.resolve());" +
        " postMessage = (data) => parent.postMessage(data, '*');";
      const close = "</" + "script>";
      frame.contentDocument.open();
      frame.contentDocument.write(`<body><script>${load}${close}<script src="${url}">${close}`);
      frame.contentDocument.close();
    }

    postMessage(data) {
      const send = () => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      if (this.frame.contentDocument.readyState === "complete") send();
      else this.frame.addEventListener("load", send, { once: true });
    }

    terminate() {
      this.frame.remove();
    }
  };
}
