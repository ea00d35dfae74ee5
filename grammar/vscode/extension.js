// Starts `lorakit lsp` for .lora files, once the workspace is trusted.
const vscode = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

function start() {
  const [command, ...args] = vscode.workspace.getConfiguration("lorakit").get("command");
  const watched = vscode.workspace.createFileSystemWatcher("**/*.{lora,py,json}");
  client = new LanguageClient(
    "lorakit",
    { command, args },
    { documentSelector: [{ language: "lora" }], synchronize: { fileEvents: watched } },
  );
  return client.start().catch((error) => {
    vscode.window.showErrorMessage(
      `lorakit: cannot run \`${[command, ...args].join(" ")}\`; ` +
        `\`pip install 'lorakit[lsp]'\` installs it, the setting lorakit.command names another. (${error})`,
    );
  });
}

function activate(context) {
  if (vscode.workspace.isTrusted) return start();
  context.subscriptions.push(vscode.workspace.onDidGrantWorkspaceTrust(start));
}

function deactivate() {
  return client?.stop();
}

module.exports = { activate, deactivate };
