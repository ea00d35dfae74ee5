// Puts beside the extension what it is packaged with, and all of its code in one file.
const { copyFileSync, mkdirSync } = require("fs");

mkdirSync("dist", { recursive: true });
copyFileSync("../lorakit.tmLanguage.json", "lorakit.tmLanguage.json");
copyFileSync("../../LICENSE", "LICENSE");
// the client runs it from beside its own code, to end a server that does not leave
copyFileSync("node_modules/vscode-languageclient/lib/node/terminateProcess.sh", "dist/terminateProcess.sh");
require("esbuild").buildSync({
  entryPoints: ["extension.js"],
  outfile: "dist/extension.js",
  bundle: true,
  minify: true,
  platform: "node",
  target: "node18",
  external: ["vscode"],
  legalComments: "eof",
});
