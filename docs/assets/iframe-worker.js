// Search without a server: browsers start no worker from a disk, so a frame that nobody sees does its work.

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.inside = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source === this.inside) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      const script = this.inside.document.createElement("script");
      script.textContent = `
        var postMessage = (data) => parent.dispatchEvent(new MessageEvent("message", { data, source: window }));
        var importScripts = (...urls) => urls.reduce(
          (before, url) => before.then(() => new Promise((resolve) => {
            const one = document.createElement("script");
            one.onload = resolve;
            one.src = url;
            document.head.append(one);
          })), Promise.resolve());`;
      this.inside.document.head.append(script);
      const work = this.inside.document.createElement("script");
      work.src = url;
      this.ready = new Promise((resolve) => {
        work.onload = resolve;
      });
      this.inside.document.head.append(work);
    }

    postMessage(data) {
      this.ready.then(() => {
        const message = new this.inside.MessageEvent("message", { data });
        this.inside.dispatchEvent(message);
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
}
