// Stands in for VS Code: `node vscode_stub.js EXTENSION COMMAND TEXT` opens a text in a window whose workspace is trusted
// later, and prints what is shown of it. Whatever is not named here exists and does nothing.
const [, , extension, command, text] = process.argv, said = [];
let trust, deactivate;
const leave = () => { console.log(JSON.stringify(said)); process.exit(0); };
const disposable = { dispose() {} };
const anything = (known = {}) =>
  new Proxy(function () {}, {
    get: (made, key) => {
      if (key in known) return known[key];
      return key === "then" || typeof key === "symbol" ? undefined : (made[key] ??= anything());
    },
    apply: () => anything(disposable),
    construct: () => ({ ...disposable }),
  });

class Range { constructor(...places) { this.places = places; } }
class Diagnostic { constructor(range) { this.range = range; } }
class TabInputText {}
class EventEmitter { event = () => disposable; fire() {} dispose() {} }
class CancellationTokenSource {
  token = { isCancellationRequested: false, onCancellationRequested: () => disposable };
  cancel() {} dispose() {}
}
const uri = { scheme: "file", fsPath: "/spec.lora", toString: () => "file:///spec.lora" };
const Uri = Object.assign(function () {}, { parse: (text) => ({ ...uri, toString: () => text }), file: () => uri });
const spec = { uri, languageId: "lora", version: 1, getText: () => text };
const shown = {
  ...disposable, clear() {}, delete() {}, has: () => false,
  set: (_, found) => {
    if (!found?.length) return;
    said.push(...found.map((one) => [one.code.value, ...one.range.places]));
    setImmediate(() => deactivate().then(leave));
  },
};
const vscode = anything({
  Range, Diagnostic, TabInputText, EventEmitter, CancellationTokenSource, Uri, version: "1.82.0", env: { appName: "stub", language: "en" },
  languages: anything({ match: () => 10, createDiagnosticCollection: () => shown }),
  window: anything({
    activeTextEditor: { document: spec }, visibleTextEditors: [{ document: spec }],
    tabGroups: anything({ all: [{ tabs: [{ input: Object.assign(new TabInputText(), { uri }) }] }] }),
    showErrorMessage: async (message) => { if (message.includes("pip install")) { said.push(message); leave(); } },
  }),
  workspace: anything({
    isTrusted: false, textDocuments: [spec], notebookDocuments: [], workspaceFolders: undefined,
    onDidGrantWorkspaceTrust: (start) => { trust = start; return disposable; },
    getConfiguration: () => ({ get: (key, other) => (key === "command" ? JSON.parse(command) : other) }),
  }),
});

const load = require("module")._load;
require("module")._load = (name, ...rest) => (name === "vscode" ? vscode : load(name, ...rest));
const loaded = require(extension);
deactivate = loaded.deactivate;
loaded.activate({ subscriptions: [] });
if (!trust) process.exit(1);
trust();
